"""Reward for an instance mask that is written as a shape (`vlm_grpo.masks`), against the record's true mask.

The truth is the record's column `mask`, COCO's RLE of the original image, not the shape that its answer holds: that one
is only as good as its codec. The box of the answer's shape is in the space in which the model's family answers.
"""

from __future__ import annotations

import json
from typing import Any

from vlm_grpo.answer_parser import extract_answer
from vlm_grpo.boxes import Size, extent
from vlm_grpo.masks import TERMS, Truth, read_rle, region_iou, regions
from vlm_grpo.records import Record


def mask_iou_reward(completion: str, record: Record) -> float | None:
    """IoU, 0 to 1, of the answer's shape with the true mask; None when the record has no `mask`.

    An answer that is no well-formed shape, or has another number of terms than the record asks for, is 0.

    Raises:
        ValueError: the true mask is broken.
    """
    answer = extract_answer(completion)
    return mask_overlap("" if answer is None else answer, "", record)


def mask_overlap(answer: str, truth: str, record: Record) -> float | None:
    """The IoU of the answer's shape with the record's column `mask`, 0 to 1; not applicable without such a column."""
    mask = true_mask(record.extra.get("mask"))
    if mask is None:
        return None
    found = (
        regions(answer, mask.height, mask.width, answer_extent(record, mask), asked_terms(record)) if answer else None
    )
    return 0.0 if found is None else region_iou(found, mask.toggles)


def true_mask(value: Any) -> Truth | None:
    """The mask of a column, an RLE object or its JSON text; None for no value.

    Raises:
        ValueError: it is no such object; says what must hold.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be JSON: {error}") from error
    return None if value is None else read_rle(value)


def asked_terms(record: Record) -> int:
    """How many numbers each axis of an answer has: the record's `terms`, 8 without it."""
    return record.extra.get("terms") or TERMS


def answer_extent(record: Record, truth: Truth) -> Size:
    """Width and height of the image in the space of the model's answers, or of the record where that is not known.

    With several images, `box_image` of the record says which one the mask is on; the first without it.
    """
    facts = record.extra
    space, sizes = facts.get("answer_space"), facts.get("image_sizes")
    if space is None or not sizes:
        return extent(facts.get("box_space") or "original", (truth.width, truth.height), None) or (
            truth.width,
            truth.height,
        )
    number = int(facts.get("box_image") or 0)
    resized = (facts.get("processed_sizes") or [None] * len(sizes))[number]
    return extent(space, sizes[number], resized) or sizes[number]
