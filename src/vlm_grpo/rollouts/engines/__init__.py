"""What generates completions. `shared_prefill.py` runs each unique prompt through transformers once."""
