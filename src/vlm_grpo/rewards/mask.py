"""Reward for an instance mask that is written as a shape (`vlm_grpo.masks`), against the record's true mask.

The truth is the record's column `mask`, COCO's RLE of the original image, not the shape that its answer holds: that one
is only as good as its codec. The box of the answer's shape is in the space in which the model's family answers.
"""

from __future__ import annotations

import json

from vlm_grpo.answer_parser import extract_answer
from vlm_grpo.boxes import Size, extent
from vlm_grpo.masks import TERMS, RLEMask, decode_regions, read_rle, region_iou
from vlm_grpo.records import Record


def mask_iou_reward(completion: str, record: Record) -> float | None:
    """Return the IoU, 0 to 1, of the answer's shape with the true mask; None when the record has no `mask`.

    An answer that is not a well-formed shape, or has a wrong number of terms, scores 0.

    Raises:
        ValueError: the true mask is broken.
    """
    answer = extract_answer(completion)
    return mask_overlap("" if answer is None else answer, "", record)


def mask_overlap(answer: str, truth: str, record: Record) -> float | None:
    """The IoU of the answer's shape with the record's column `mask`, 0 to 1; not applicable without such a column."""
    mask = target_mask(record.extra.get("mask"))
    if mask is None:
        return None
    regions = (
        decode_regions(answer, mask.height, mask.width, answer_extent(record, mask), expected_terms(record))
        if answer
        else None
    )
    return 0.0 if regions is None else region_iou(regions, mask.boundaries)


def target_mask(value: object) -> RLEMask | None:
    """Return the mask of a column, an RLE object or its JSON text; None without a value.

    Raises:
        ValueError: it is not such an object; the message says what must hold.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be JSON: {error}") from error
    return None if value is None else read_rle(value)


def expected_terms(record: Record) -> int:
    """Return how many numbers each axis of an answer has: the record's `terms`, by default 8."""
    return record.extra.get("terms") or TERMS


def answer_extent(record: Record, truth: RLEMask) -> Size:
    """Return the image's width and height in the space of the model's answers, or the record's if that is unknown.

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
