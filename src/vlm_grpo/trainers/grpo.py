"""GRPO (arXiv:2402.03300) on images: TRL's trainer on this package's pipeline."""

from __future__ import annotations

from trl import GRPOTrainer

from vlm_grpo.trainers.base import VLMTrainerMixin
from vlm_grpo.trainers.config import VLMGRPOConfig


class VLMGRPOTrainer(VLMTrainerMixin, GRPOTrainer):
    """`trl.GRPOTrainer` for data with images, text, or both.

    Takes all that TRL's trainer takes. `reward_funcs` may also hold names of `REWARDS` ("accuracy", "iou@0.5:2") and
    `path/to/file.py:function`; `train_dataset` may come from `vlm_grpo.load_dataset` or be any TRL data set.
    """

    config_class = VLMGRPOConfig
    _is_rloo = False
