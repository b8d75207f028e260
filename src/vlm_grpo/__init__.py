"""Reinforcement learning from verifiable rewards for vision-language models, on top of TRL.

Names are imported when they are first used: `import vlm_grpo` costs nothing, `vlm_grpo.REWARDS` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "VLMGRPOTrainer": "vlm_grpo.trainers.grpo",
    "VLMRLOOTrainer": "vlm_grpo.trainers.rloo",
    "VLMGRPOConfig": "vlm_grpo.trainers.config",
    "VLMRLOOConfig": "vlm_grpo.trainers.config",
    "load_dataset": "vlm_grpo.data",
    "evaluate": "vlm_grpo.evaluation",
    "LiveReport": "vlm_grpo.evaluation.report.dashboard",
    "REWARDS": "vlm_grpo.rewards",
    "RewardFn": "vlm_grpo.rewards",
    "make_reward": "vlm_grpo.rewards",
    "TASKS": "vlm_grpo.tasks",
    "PROMPTS": "vlm_grpo.prompts",
    "ALGORITHMS": "vlm_grpo.algorithms",
    "Algorithm": "vlm_grpo.algorithms",
    "AlgorithmConfig": "vlm_grpo.algorithms",
    "Environment": "vlm_grpo.envs",
    "ToolError": "vlm_grpo.envs",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlm_grpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
