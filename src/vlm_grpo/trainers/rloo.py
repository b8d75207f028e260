"""RLOO (arXiv:2402.14740) on images: TRL's trainer on this package's pipeline."""

from __future__ import annotations

from trl import RLOOTrainer

from vlm_grpo.trainers.base import VLMTrainerMixin
from vlm_grpo.trainers.config import VLMRLOOConfig


class VLMRLOOTrainer(VLMTrainerMixin, RLOOTrainer):  # type: ignore[misc]  # the mixin's types are those over GRPO's
    """`trl.RLOOTrainer` for data with images, text, or both. Takes what `VLMGRPOTrainer` takes."""

    config_class = VLMRLOOConfig
    _is_rloo = True
