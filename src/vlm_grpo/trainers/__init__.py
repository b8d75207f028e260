"""The trainers. One pipeline (pipeline.py) serves both; grpo.py and rloo.py only bind it to TRL's classes."""
