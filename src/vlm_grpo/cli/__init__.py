"""Command line: one module per command, dispatched by `main.py`."""
