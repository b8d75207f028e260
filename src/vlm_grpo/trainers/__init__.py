"""The trainers. One mixin (base.py) serves both; grpo.py and rloo.py only bind it to TRL's classes."""
