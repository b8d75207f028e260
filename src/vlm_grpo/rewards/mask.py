"""Reward for an instance mask written as a shape (`vlm_grpo.masks`), compared with the record's target mask.

The target is the record's column `mask` (COCO RLE of the original image), not the shape in its gold answer, which is
only as accurate as its codec. The box of the answer's shape is in the coordinate space of the model family.
"""

from __future__ import annotations

import json

from vlm_grpo.answer_parser import extract_answer
from vlm_grpo.boxes import Size, extent
from vlm_grpo.masks import TERMS, RLEMask, decode_regions, read_rle, region_iou
from vlm_grpo.records import Record


def mask_iou_reward(completion: str, record: Record) -> float | None:
    """Return the IoU, 0 to 1, of the answer's shape with the target mask; None if the record has no `mask`.

    An answer that is not a well-formed shape, or has the wrong number of terms, scores 0.

    Raises:
        ValueError: the target mask is invalid.
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
    """Return the mask in a column, an RLE object or its JSON text; None without a value.

    Raises:
        ValueError: the value is not a valid RLE object; the message says what is expected.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be JSON: {error}") from error
    return None if value is None else read_rle(value)


def expected_terms(record: Record) -> int:
    """Return the number of coefficients per axis in an answer: the record's `terms`, 8 by default."""
    return record.extra.get("terms") or TERMS


def answer_extent(record: Record, truth: RLEMask) -> Size:
    """Return the image's width and height in the space of the model's answers, or the record's if that is unknown.

    With several images, the record's `box_image` is the index of the image that the mask refers to (default: the
    first).
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
