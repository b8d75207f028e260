"""The quickstart: a tiny model learns to read handwritten digits on a CPU, from its weights to a report.

It is part of the installed package, so that `vlm-grpo quickstart` runs without a clone.
"""
