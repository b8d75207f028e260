"""Validate gold boxes, masks and detections, and the columns that locate them. Reads no image."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_grpo.answer_parser import ground_truth_text
from vlm_grpo.boxes import extent
from vlm_grpo.data.errors import FieldProblem, show_value
from vlm_grpo.masks import MAX_TERMS, MIN_TERMS, TERMS, RLEMask, decode_regions, region_iou, validate_shape
from vlm_grpo.records import Row
from vlm_grpo.rewards.detection import parse_target_detections
from vlm_grpo.rewards.iou import target_box
from vlm_grpo.rewards.mask import target_mask
from vlm_grpo.tasks import TASKS

EXTENTS = {"thousand": 1000, "unit": 1}  # largest coordinate of spaces that do not depend on the image

BOX_COLUMNS = ("box_space", "box_image")  # null or missing: original pixels of the first image
BOX_TASKS = frozenset(name for name in TASKS if "iou" in TASKS[name].rewards)
MASK_TASKS = frozenset(name for name in TASKS if "mask_iou" in TASKS[name].rewards)
MASK_FORM = 'the target mask as COCO RLE, {"size": [height, width], "counts": ...}'
DETECTION_TASKS = frozenset(name for name in TASKS if "detection" in TASKS[name].rewards)
SHAPE_TASKS = BOX_TASKS | MASK_TASKS | DETECTION_TASKS
DETECTION_FORM = '[{"bbox_2d": [x1, y1, x2, y2], "label": ...}, ...] in pixels, "Position" for 0 to 1000, or "None"'
BOX_FORM = '{"bbox_2d": [x1, y1, x2, y2]}, one box'


def validate_shapes(row: Row, answer: object, task: str, images: int) -> Iterator[FieldProblem]:
    """Yield problems of the gold boxes or mask that a task requires, and of box columns in any row."""
    if task in BOX_TASKS or any(name in row for name in BOX_COLUMNS):
        yield from validate_box(row, answer, task, images)
    if task in DETECTION_TASKS:
        yield from validate_detections(answer)
    if task in MASK_TASKS:
        yield from validate_mask(row, answer)


def validate_box(row: Row, answer: object, task: str, images: int) -> Iterator[FieldProblem]:
    """Yield problems of the columns and the box that would make a box reward raise an exception or be constant.

    The box is validated if the task has a box reward.
    """
    space, number = (row.get(name) for name in BOX_COLUMNS)
    expected = None if space is None else validate_space(space)
    if expected:
        yield "box_space", show_value(space), expected
    if number is not None and (type(number) is not int or not 0 <= number < images):
        yield "box_image", show_value(number), f"the 0-based index of one of the row's {images} images"
    if task in BOX_TASKS:
        yield from _validate_box_answer(answer, None if expected else space)


def validate_space(space: object) -> str | None:
    """Return what is expected if a value is not a coordinate space; None if it is."""
    try:
        extent(str(space), (1, 1), None)
    except ValueError as error:
        return str(error).partition(", got ")[0]
    return None


def _validate_box_answer(answer: object, space: str | None) -> Iterator[FieldProblem]:
    box = target_box(answer)
    if box is None:
        yield "answer", f"{type(answer).__name__} {show_value(answer)}", BOX_FORM
    elif not box.area:
        yield "answer", show_value(answer), "x1 < x2 and y1 < y2, both above 0"
    elif space in EXTENTS:
        largest = EXTENTS[space]
        if max(box) > largest:
            yield "answer", show_value(answer), f"coordinates from 0 to {largest} in the space {space!r}"


def validate_detections(answer: object) -> Iterator[FieldProblem]:
    """Yield a problem if the gold answer is not a list of detections."""
    if parse_target_detections(ground_truth_text(answer)) is None:
        hint = "; `bbox` may mean corners or COCO's x, y, width, height" if "bbox'" in repr(answer) else ""
        yield "answer", f"{type(answer).__name__} {show_value(answer)}", f"a list of boxes, {DETECTION_FORM}{hint}"


def validate_mask(row: Row, answer: object) -> Iterator[FieldProblem]:
    """Yield problems of mask, `terms` and shape that would make the mask reward raise an exception or be constant."""
    truth = None
    try:
        truth = target_mask(row.get("mask"))
    except ValueError as error:
        yield "mask", show_value(row["mask"]), f"{MASK_FORM}; it {error}"
    else:
        if truth is None:
            yield "mask", "missing or null", MASK_FORM
        elif not truth.area:
            yield "mask", "no pixel inside", MASK_FORM
    terms = row.get("terms")
    if terms is not None and (type(terms) is not int or not MIN_TERMS <= terms <= MAX_TERMS):
        yield "terms", show_value(terms), f"an integer from {MIN_TERMS} to {MAX_TERMS}"
        return
    expected = validate_shape(answer, terms or TERMS)
    if expected:
        yield "answer", f"{type(answer).__name__} {show_value(answer)}", f"a shape: {expected}"
    elif truth is not None and truth.area:
        yield from _validate_overlap(row, answer, truth)


def _validate_overlap(row: Row, answer: object, truth: RLEMask) -> Iterator[FieldProblem]:
    """Yield a problem if the gold shape does not overlap the mask, usually because of a wrong coordinate space."""
    space, size = row.get("box_space") or "original", (truth.width, truth.height)
    image_extent = None if validate_space(space) else extent(str(space), size, None)
    if (
        image_extent
        and region_iou(decode_regions(answer, truth.height, truth.width, image_extent) or [], truth.boundaries) == 0
    ):
        yield "answer", show_value(answer), f"a shape that overlaps the mask, with boxes in the space {space!r}"
