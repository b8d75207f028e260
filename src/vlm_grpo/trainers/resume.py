"""Weights back from a checkpoint, under the names that the live model uses.

`save_pretrained` writes many vision-language models under their hub's key names; loading those names into the live
model as they stand changes nothing and only warns. `from_pretrained` converts them.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def load_full_weights(model: PreTrainedModel, checkpoint: str | Path) -> None:
    """Copy all weights of a checkpoint into the model.

    Raises:
        RuntimeError: keys of the checkpoint and of the model do not fit.
    """
    saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, device_map=None)
    model.load_state_dict(saved.state_dict(), strict=True)


def has_full_weights(checkpoint: str | Path) -> bool:
    """Whether the folder holds a whole model (not only an adapter)."""
    return any((Path(checkpoint) / name).is_file() for name in FULL_WEIGHTS)
