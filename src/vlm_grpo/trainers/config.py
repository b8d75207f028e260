"""TRL's configurations plus the few fields that image training needs. The fields are the same for both trainers."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig, RLOOConfig


@dataclass
class VisionFields:
    """Fields that both configurations share. Pixels are counted after the family's own rounding to whole patches."""

    max_pixels: int | None = field(
        default=None, metadata={"help": "Images with more pixels are shrunk to at most this many."}
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Images with fewer pixels are enlarged to at least this many."}
    )
    freeze_vision_modules: bool = field(
        default=False, metadata={"help": "Keep the vision tower's weights as they are."}
    )


@dataclass
class VLMGRPOConfig(VisionFields, GRPOConfig):
    """`trl.GRPOConfig` with pixel limits and vision freezing."""


@dataclass
class VLMRLOOConfig(VisionFields, RLOOConfig):
    """`trl.RLOOConfig` with pixel limits and vision freezing."""
