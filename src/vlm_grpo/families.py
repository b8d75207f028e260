"""What is known of each model family, keyed by `config.model_type`: facts, not behaviour.

A family that is not listed goes the generic way (`loading.py`), with a warning where facts would have decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlm_grpo.table import Table

# resized: pixels of the image as the processor resized it. thousand: 0 to 1000 in both directions, whatever the size.
# unit: 0 to 1 likewise.
CoordinateSpace = Literal["resized", "thousand", "unit"]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        vision_tower, language_model: modules of the loaded model, as `named_modules` calls them.
        projector: modules and parameters between the two. In the Qwen and GLM families they lie inside the tower.
        placeholders: tokens that only a processor writes, for images and videos and around them.
        coordinate_space: of the boxes that the family was trained on; None where nothing is published.
    """

    vision_tower: str
    projector: tuple[str, ...]
    language_model: str
    placeholders: tuple[str, ...]
    coordinate_space: CoordinateSpace | None


QWEN_MARKS = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>")
PROJECTOR = ("model.multi_modal_projector",)

FAMILIES: Table[Family] = Table(
    "model family",
    {
        "qwen2_vl": Family("model.visual", ("model.visual.merger",), "model.language_model", QWEN_MARKS, "thousand"),
        "qwen2_5_vl": Family("model.visual", ("model.visual.merger",), "model.language_model", QWEN_MARKS, "resized"),
        "qwen3_vl": Family(
            "model.visual",
            ("model.visual.merger", "model.visual.deepstack_merger_list"),
            "model.language_model",
            QWEN_MARKS,
            "thousand",
        ),
        "llava": Family("model.vision_tower", PROJECTOR, "model.language_model", ("<image>",), "unit"),
        "llava_onevision": Family(
            "model.vision_tower",
            (*PROJECTOR, "model.image_newline"),
            "model.language_model",
            ("<image>", "<video>"),
            "unit",
        ),
        "internvl": Family(
            "model.vision_tower",
            PROJECTOR,
            "model.language_model",
            ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
            "thousand",
        ),
        "smolvlm": Family(
            "model.vision_model",
            ("model.connector",),
            "model.text_model",
            ("<image>", "<fake_token_around_image>", "<global-img>"),
            None,
        ),
        "gemma3": Family(
            "model.vision_tower",
            PROJECTOR,
            "model.language_model",
            ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
            None,
        ),
        "glm4v": Family(
            "model.visual",
            ("model.visual.downsample", "model.visual.merger"),
            "model.language_model",
            (
                "<|begin_of_image|>",
                "<|end_of_image|>",
                "<|begin_of_video|>",
                "<|end_of_video|>",
                "<|image|>",
                "<|video|>",
            ),
            "thousand",
        ),
        "mistral3": Family(
            "model.vision_tower", PROJECTOR, "model.language_model", ("[IMG]", "[IMG_BREAK]", "[IMG_END]"), None
        ),
    },
)


def coordinate_space(model_type: str) -> CoordinateSpace | None:
    """In which space models of a family answer with boxes; None where it is not known."""
    family = FAMILIES.get(model_type)
    return None if family is None else family.coordinate_space
