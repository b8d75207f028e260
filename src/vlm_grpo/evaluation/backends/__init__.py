"""Backends of an evaluation: a model in this process (`hf`), its episodes with tools (`agent`), a server (`openai`)."""
