"""TRL's configurations plus the few fields that image training needs. The fields are the same for both trainers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Rows with longer prompts, counted with their images' tokens, are dropped."}
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Pass each prompt through the model once for all of its completions: auto, on or off.",
            "choices": ["auto", "on", "off"],
        },
    )
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={"help": "About how many tokens of shared prompts go into one forward (default: the batch size's)."},
    )
    freeze_vision_modules: bool = field(
        default=False, metadata={"help": "Keep the vision tower's weights as they are."}
    )
    freeze_projector: bool = field(
        default=False, metadata={"help": "Keep the projector between vision tower and language model as it is."}
    )
    freeze_language_model: bool = field(
        default=False, metadata={"help": "Keep the language model's weights (without its head) as they are."}
    )
    reasoning_encoder: str | None = field(
        default=None,
        metadata={"help": "Sentence encoder of the reasoning reward, name or folder (default all-MiniLM-L6-v2)."},
    )
    reasoning_device: str | None = field(
        default=None, metadata={"help": "Where the sentence encoder runs, such as cuda (default cpu)."}
    )
    reasoning_threshold: float | None = field(
        default=None, metadata={"help": "Cosine above which two reasoning steps match (default: the encoder's own)."}
    )

    def frozen_parts(self) -> list[str]:
        """Parts of the model, besides the vision tower, that are not trained."""
        parts = {"projector": self.freeze_projector, "language model": self.freeze_language_model}
        return [part for part, is_frozen in parts.items() if is_frozen]

    def reward_options(self) -> dict[str, Any]:
        """What the built-in rewards take from this configuration."""
        return {
            "max_length": self.max_completion_length,
            "encoder": self.reasoning_encoder,
            "device": self.reasoning_device,
            "threshold": self.reasoning_threshold,
        }


@dataclass
class VLMGRPOConfig(VisionFields, GRPOConfig):
    """`trl.GRPOConfig` with pixel limits, vision freezing and the reasoning encoder."""


@dataclass
class VLMRLOOConfig(VisionFields, RLOOConfig):
    """`trl.RLOOConfig` with pixel limits, vision freezing and the reasoning encoder."""
