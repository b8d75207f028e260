"""RLOO (arXiv:2402.14740) on images: TRL's trainer on this package's pipeline."""

from __future__ import annotations

from typing import Any

from trl import RLOOTrainer

from vlm_grpo.trainers.base import VLMTrainerMixin
from vlm_grpo.trainers.config import VLMRLOOConfig
from vlm_grpo.trainers.reward_functions import by_name


class VLMRLOOTrainer(VLMTrainerMixin, RLOOTrainer):
    """`trl.RLOOTrainer` for data with images, text, or both. Takes what `VLMGRPOTrainer` takes."""

    config_class = VLMRLOOConfig
    _generates_logps = False

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        super().__init__(model, reward_funcs, args, **by_name(RLOOTrainer, rest), **options)
