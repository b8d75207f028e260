"""Target and predicted boxes and masks of a prediction, to draw on images of a report.

Coordinates are thousandths of the image's width and height, so that a drawing fits a thumbnail of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlm_grpo.boxes import Box, convert, extent, only_box
from vlm_grpo.evaluation.dataset_metrics import mask_pair
from vlm_grpo.records import JsonObject, Prediction, Record
from vlm_grpo.rewards.iou import target_box

MAX_BOXES = 60  # of each kind per image, for readability
TRUE, PREDICTED, BOTH = (18, 184, 110), (240, 30, 140), (255, 235, 60)


class OverlayBox(NamedTuple):
    """A box on one of the images: `kind` is "true" or "answer"; the label may be empty."""

    image: int
    kind: str
    box: Box
    label: str = ""


def boxes_of(prediction: Prediction) -> list[OverlayBox]:
    """Return the target and predicted boxes of a prediction; none if its gold answer is not a box."""
    facts = prediction.get("facts") or {}
    sizes = facts.get("image_sizes")
    image = int(facts.get("box_image") or 0)
    if not sizes or not 0 <= image < len(sizes):
        return []
    target_space = facts.get("box_space") or "original"
    answer_space = facts.get("answer_space") or target_space
    evidence = (prediction.get("evidence") or {}).get("boxes")
    if evidence and evidence[0]:
        entries = [(kind, box, answer_space, label) for kind, box, label in _detections(evidence[0])]
    else:
        pairs = [
            ("true", target_box(prediction["answer"]), target_space),
            ("answer", _predicted_box(prediction), answer_space),
        ]
        entries = [(kind, box, space, "") for kind, box, space in pairs if box is not None]
        entries = entries if entries and entries[0][0] == "true" else []
    boxes = [(kind, in_thousandths(box, space, facts, image), label) for kind, box, space, label in entries]
    return [OverlayBox(image, kind, box, label) for kind, box, label in boxes if box is not None]


def _predicted_box(prediction: Prediction) -> Box | None:
    return only_box(prediction["predicted"] or "")


def _detections(evidence: JsonObject) -> list[tuple[str, Box, str]]:
    """Return kind, box and label of the boxes of evidence, by decreasing confidence."""
    right = [("true", Box(*box), str(label)) for label, *box in evidence["truth"]]
    found = sorted(evidence["found"], key=lambda item: -item[1])
    given = [("answer", Box(*box), f"{label} {sure:.2f}".strip()) for label, sure, *box in found]
    return [*right[:MAX_BOXES], *given[:MAX_BOXES]]


def in_thousandths(box: Box, space: str, facts: JsonObject, image: int) -> Box | None:
    """Return a box in thousandths of its image; None if the size of the coordinate space is unknown."""
    original = tuple(facts["image_sizes"][image])
    resized = (facts.get("processed_sizes") or [None] * (image + 1))[image]
    if extent(space, original, resized and tuple(resized)) is None:
        return None
    return convert(box, space, "thousand", original, resized and tuple(resized))


def masks_of(prediction: Prediction) -> tuple[np.ndarray | None, np.ndarray] | None:
    """Return the predicted and the target mask, bool (H, W); None if one of them is missing."""
    record = Record(prediction["id"], "", prediction["answer"], extra=prediction.get("facts") or {})
    return mask_pair(prediction["predicted"], record)


def paint_masks(image: Image.Image, predicted: np.ndarray | None, true: np.ndarray) -> Image.Image:
    """Return the grayscale image with the target mask in green, the predicted one in magenta, the overlap in yellow."""
    painted = [
        _resize(mask, image.size) for mask in (true, predicted if predicted is not None else np.zeros_like(true))
    ]
    pixels = np.asarray(image.convert("L").convert("RGB"), dtype=float)
    for color, where in (
        (TRUE, painted[0] & ~painted[1]),
        (PREDICTED, painted[1] & ~painted[0]),
        (BOTH, painted[0] & painted[1]),
    ):
        pixels[where] = 0.5 * pixels[where] + 0.5 * np.array(color)
    return Image.fromarray(pixels.astype(np.uint8))


def _resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture) > 127


def as_json(boxes: Sequence[OverlayBox]) -> list[list[object]]:
    """Return boxes for the page's script: image, kind, left, top, width, height, label."""
    rows = []
    for image, kind, (x1, y1, x2, y2), label in boxes:
        left, top = (min(max(value, 0), 1000) for value in (x1, y1))
        right, bottom = (min(max(value, 0), 1000) for value in (x2, y2))
        sides = [round(value, 1) for value in (left, top, max(0, right - left), max(0, bottom - top))]
        rows.append([image, kind, *sides, label[:40]])
    return rows
