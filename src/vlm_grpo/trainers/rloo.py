"""RLOO (arXiv:2402.14740) on images: TRL's trainer on this package's pipeline."""

from __future__ import annotations

from typing import Any

from trl import RLOOTrainer

from vlm_grpo.trainers.config import VLMRLOOConfig
from vlm_grpo.trainers.named import by_name
from vlm_grpo.trainers.pipeline import VisionPipeline


class VLMRLOOTrainer(VisionPipeline, RLOOTrainer):
    """`trl.RLOOTrainer` for data with images, text, or both. Takes what `VLMGRPOTrainer` takes."""

    config_class = VLMRLOOConfig
    _generates_logps = False

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        super().__init__(model, reward_funcs, args, **by_name(RLOOTrainer, rest), **options)
