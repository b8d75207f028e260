"""Backends of an evaluation: a model in this process (`hf`), episodes with tools (`agent`), a server (`openai`)."""
