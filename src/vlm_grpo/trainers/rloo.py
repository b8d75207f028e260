"""RLOO (arXiv:2402.14740) on images: TRL's trainer on this package's pipeline."""

from __future__ import annotations

from trl import RLOOTrainer

from vlm_grpo.trainers.config import VLMRLOOConfig
from vlm_grpo.trainers.pipeline import VisionPipeline


class VLMRLOOTrainer(VisionPipeline, RLOOTrainer):
    """`trl.RLOOTrainer` for data with images, text, or both. Takes what `VLMGRPOTrainer` takes."""

    config_class = VLMRLOOConfig
    _generates_logps = False
