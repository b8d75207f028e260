"""IoU rewards of one box in the answer with the target box of the record.

The answer is in the coordinate space of the model family (`answer_space`, set by the trainer and the evaluation), the
target in the record's `box_space`, by default pixels of the original image. They are compared in the answer's space.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from vlm_grpo.answer_parser import extract_answer
from vlm_grpo.boxes import Box, convert, giou, iou, only_box
from vlm_grpo.records import Record


class BoxPair(NamedTuple):
    """The answer's only box (None for no box or several) and the target box."""

    predicted: Box | None
    target: Box


def box_pair(completion: str, record: Record) -> BoxPair | None:
    """Return the boxes to compare, in the space of the answer; None if the record does not have exactly one box."""
    target = target_box(record.answer)
    if target is None:
        return None
    return BoxPair(only_box(extract_answer(completion) or ""), in_answer_space(target, record))


def in_answer_space(box: Box, record: Record, source: str | None = None) -> Box:
    """Return the box converted to the space of the model's answers; unchanged if the space or sizes are unknown.

    `source` is the current space of the box, by default the record's `box_space`. With several images, the record's
    `box_image` is the index of the image that the box refers to (default: the first).
    """
    facts = record.extra
    space, sizes = facts.get("answer_space"), facts.get("image_sizes")
    if space is None or not sizes:
        return box
    number = int(facts.get("box_image") or 0)
    resized = (facts.get("processed_sizes") or [None] * len(sizes))[number]
    return convert(box, source or facts.get("box_space") or "original", space, sizes[number], resized)


def target_box(answer: object) -> Box | None:
    """Return the record's box from a list, an object with `bbox_2d`, or either as text."""
    return _parse_target_box(answer) if isinstance(answer, str) else None if answer is None else only_box(answer)


@lru_cache(maxsize=65536)
def _parse_target_box(answer: str) -> Box | None:
    return only_box((extract_answer(answer) if "<answer>" in answer else None) or answer)


def iou_reward(completion: str, record: Record, *, above: float | None = None, power: float = 1.0) -> float | None:
    """Return the IoU of the answer's box with the target box, 0 to 1; None if the record has no box.

    Args:
        above: Return 1.0 if the IoU exceeds this threshold, else 0.0 (the RefCOCO protocol uses 0.5).
        power: Exponent of the IoU; 2 favors precise boxes.
    """
    pair = box_pair(completion, record)
    if pair is None:
        return None
    value = 0.0 if pair.predicted is None else iou(pair.predicted, pair.target)
    return value**power if above is None else float(value > above)


def box_overlap(answer: str, truth: str, record: Record) -> float | None:
    """The IoU of the answer's only box with the gold box, 0 to 1; not applicable unless there is one gold box."""
    target = target_box(record.answer)
    predicted = only_box(answer)
    return None if target is None else 0.0 if predicted is None else iou(predicted, in_answer_space(target, record))


def giou_reward(completion: str, record: Record) -> float | None:
    """Return the generalized IoU (arXiv:1902.09630) as (giou + 1) / 2; 0 without a box, or for one without area."""
    pair = box_pair(completion, record)
    if pair is None:
        return None
    return 0.0 if pair.predicted is None or not pair.predicted.area else (giou(pair.predicted, pair.target) + 1) / 2


def center_reward(completion: str, record: Record) -> float | None:
    """Return 1.0 if the center of the answer's box is inside the target box; combine with `iou`, as size is ignored."""
    pair = box_pair(completion, record)
    if pair is None:
        return None
    box, truth = pair
    if box is None or box.area == 0:
        return 0.0
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    return float(truth.x1 <= x <= truth.x2 and truth.y1 <= y <= truth.y2)
