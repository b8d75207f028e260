"""The coordinate space of a model's boxes: set by the user, that of its family, or pixels of the original image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_grpo.families import coordinate_space

if TYPE_CHECKING:
    from transformers import ProcessorMixin


ANSWER_SPACES = ("thousand", "resized", "original", "unit")
DEFAULT_SPACE = "original"


def answer_space(model_type: str, chosen: str | None) -> str:
    """Return the space of a model's boxes; by default, pixels of the original image."""
    return chosen or coordinate_space(model_type) or DEFAULT_SPACE


def space_notice(model_type: str, chosen: str | None) -> str | None:
    """Return a notice if the space of a model's boxes has to be assumed; None otherwise."""
    if chosen is not None or coordinate_space(model_type) is not None:
        return None
    return (
        f"boxes are read as pixels of the original image: no coordinate space is published for {model_type}; "
        f"set another one with --answer_space {'|'.join(ANSWER_SPACES)}"
    )


def check_answer_space(chosen: str | None, processor: ProcessorMixin) -> None:
    """Check that the size of resized images is known if the space is `resized`.

    Raises:
        ValueError: the processor has no grid of patches, or the space is unknown.
    """
    if chosen is not None and chosen not in ANSWER_SPACES:
        raise ValueError(f"--answer_space must be one of {', '.join(ANSWER_SPACES)}, got {chosen!r}")
    images = getattr(processor, "image_processor", None)
    if chosen == "resized" and "image_grid_thw" not in getattr(images, "model_input_names", ()):
        raise ValueError(
            f"--answer_space resized: {type(images).__name__} has no known resize rule; "
            "choose thousand, unit or original"
        )
