"""The coordinate space of a model's boxes: chosen, or its family's, or pixels of the original image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_grpo.families import coordinate_space

if TYPE_CHECKING:
    from transformers import ProcessorMixin


ANSWER_SPACES = ("thousand", "resized", "original", "unit")
DEFAULT_SPACE = "original"


def answer_space(model_type: str, chosen: str | None) -> str:
    """Return the space of a model's boxes; pixels of the original image where nothing is published or chosen."""
    return chosen or coordinate_space(model_type) or DEFAULT_SPACE


def space_notice(model_type: str, chosen: str | None) -> str | None:
    """Return the line that a run with boxes prints where it has to guess; None where it does not."""
    if chosen is not None or coordinate_space(model_type) is not None:
        return None
    return (
        f"boxes are read as pixels of the original image: no coordinate space is published for {model_type}; "
        f"--answer_space {'|'.join(ANSWER_SPACES)} chooses another"
    )


def check_answer_space(chosen: str | None, processor: ProcessorMixin) -> None:
    """Refuse `resized` where it is not known to which size images are resized.

    Raises:
        ValueError: the processor has no grid of patches, or the space is unknown.
    """
    if chosen is not None and chosen not in ANSWER_SPACES:
        raise ValueError(f"--answer_space must be one of {', '.join(ANSWER_SPACES)}, got {chosen!r}")
    images = getattr(processor, "image_processor", None)
    if chosen == "resized" and "image_grid_thw" not in getattr(images, "model_input_names", ()):
        raise ValueError(
            f"--answer_space resized: {type(images).__name__} does not tell the size that it resizes to; "
            "choose thousand, unit or original"
        )
