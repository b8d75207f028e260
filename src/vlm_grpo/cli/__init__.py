"""Command line: one module per command, `main.py` chooses."""
