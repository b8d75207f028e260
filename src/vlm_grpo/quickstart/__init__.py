"""The quickstart: train a tiny model to read handwritten digits on a CPU, from random weights to a report.

It is part of the installed package, so that `vlm-grpo quickstart` runs without a clone.
"""
