"""Overlap of the box in the answer with the record's box. Listing several boxes is no answer."""

from __future__ import annotations

from vlm_grpo.boxes import Box, giou, iou, only_box
from vlm_grpo.records import Record
from vlm_grpo.text import extract_answer


def _pair(completion: str, record: Record) -> tuple[Box | None, Box] | None:
    truth = only_box(record.answer) if record.answer is not None else None
    if truth is None:
        return None
    return only_box(extract_answer(completion) or ""), truth


def iou_reward(completion: str, record: Record) -> float | None:
    """IoU of the answer's box with the true box; None when the record has no box."""
    pair = _pair(completion, record)
    return None if pair is None else 0.0 if pair[0] is None else iou(pair[0], pair[1])


def iou_at_half_reward(completion: str, record: Record) -> float | None:
    """1.0 when the IoU exceeds 0.5, else 0.0."""
    value = iou_reward(completion, record)
    return None if value is None else float(value > 0.5)


def iou_squared_reward(completion: str, record: Record) -> float | None:
    """The IoU squared, which pays more for the last bit of precision."""
    value = iou_reward(completion, record)
    return None if value is None else value**2


def giou_reward(completion: str, record: Record) -> float | None:
    """Generalised IoU moved to 0..1 as (giou + 1) / 2; no box is 0."""
    pair = _pair(completion, record)
    return None if pair is None else 0.0 if pair[0] is None or not pair[0].area else (giou(*pair) + 1) / 2


def center_reward(completion: str, record: Record) -> float | None:
    """1.0 when the centre of the answer's box lies inside the true box."""
    pair = _pair(completion, record)
    if pair is None:
        return None
    box, truth = pair
    if box is None or box.area == 0:
        return 0.0
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    return float(truth.x1 <= x <= truth.x2 and truth.y1 <= y <= truth.y2)
