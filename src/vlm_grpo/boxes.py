"""Boxes as [x1, y1, x2, y2]: parsing, coordinate spaces, IoU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vlm_grpo.answer_parser import extract_json

NUMBER = r"-?\d{1,12}(?:\.\d{1,20})?"  # more digits cannot be a coordinate, and could become infinite
FOUR = re.compile(rf"\[\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\]")
CORNERS = re.compile(rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)\s*,\s*\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)")

LOC = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>")  # PaliGemma's top, left, bottom, right
LOCS = 1024  # number of positions per side
# Markup of boxes: Qwen, InternVL and CogVLM, GLM; a label may precede or follow it.
LABEL = r"(?:<\|object_ref_start\|>[^<>]*<\|object_ref_end\|>|<ref>[^<>]*</ref>)?"
CORNER_PAIR, LISTED = CORNERS.pattern, rf"\[?\s*{FOUR.pattern}\s*\]?"
MARKED = re.compile(
    rf"\s*{LABEL}\s*(?:<\|box_start\|>{CORNER_PAIR}<\|box_end\|>|<box>\s*(?:{LISTED}|{CORNER_PAIR})\s*</box>"
    rf"|<\|begin_of_box\|>\s*(?:{LISTED}|{CORNER_PAIR})\s*<\|end_of_box\|>|{CORNER_PAIR}|{LOC.pattern}[^<>\d\[(]*)\s*"
)

Size = tuple[float, float]


class Box(NamedTuple):
    """Left, top, right, bottom; negative coordinates are clipped to zero."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """Return the area; zero if the corners are swapped or coincide."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


def boxes_in(text: str) -> list[Box]:
    """Return all boxes in a text, in order: `[x1,y1,x2,y2]` (also inside JSON), `(x1,y1),(x2,y2)`, PaliGemma's tokens.

    Those tokens encode 1024 positions per side and are converted to thousandths.
    """
    matches = [(match.start(), _box(match.groups())) for form in (FOUR, CORNERS) for match in form.finditer(text)]
    if "<loc" in text:
        matches += [(match.start(), _box_of_tokens(*match.groups())) for match in LOC.finditer(text)]
    return [box for _, box in sorted(matches, key=lambda pair: pair[0])]


def only_box(value: object) -> Box | None:
    """Return the only box in a text, list or object; None for no box or several.

    Text that starts like a JSON object, or is in a code fence, must be valid JSON, as for `format`.
    """
    text = value.strip() if isinstance(value, str) else json.dumps(value, default=str)
    if text.startswith(("{", "```", "[{")) and extract_json(text) is None:
        return None
    boxes = boxes_in(text)
    return boxes[0] if len(boxes) == 1 else None


def is_marked_box(answer: str) -> bool:
    """Return whether an answer is exactly one box, as JSON or in the markup of a family.

    JSON is `{"bbox_2d": [...]}` with an optional `label`, alone or as the only item of a list. Four bare numbers in
    brackets are ambiguous.
    """
    value = extract_json(answer)
    if value is None:
        return MARKED.fullmatch(answer) is not None and only_box(answer) is not None
    items = value if isinstance(value, list) else [value]
    return len(items) == 1 and isinstance(items[0], dict) and _is_json_box(items[0]) and only_box(answer) is not None


def _is_json_box(item: Mapping[str, object]) -> bool:
    corners = item.get("bbox_2d")
    is_box = isinstance(corners, list) and len(corners) == 4 and all(type(x) in (int, float) for x in corners)
    return is_box and {"bbox_2d"} <= set(item) <= {"bbox_2d", "label"} and isinstance(item.get("label", ""), str)


def _box_of_tokens(top: str, left: str, bottom: str, right: str) -> Box:
    return _box([1000 * int(place) / LOCS for place in (left, top, right, bottom)])


def _box(numbers: Iterable[str | float]) -> Box:
    return Box(*(max(0.0, float(number)) for number in numbers))


def extent(space: str, original: Size, resized: Size | None) -> Size | None:
    """Return width and height of an image in a coordinate space; None if its resized size is unknown.

    Raises:
        ValueError: an unknown space.
    """
    extents = {"original": original, "resized": resized, "thousand": (1000, 1000), "unit": (1, 1)}
    if space not in extents:
        raise ValueError(f"a coordinate space must be one of {', '.join(extents)}, got {space!r}")
    return extents[space]


def convert(box: Box, source: str, target: str, original: Size, resized: Size | None = None) -> Box:
    """Convert a box to another coordinate space of its image; unchanged if a size is unknown.

    Spaces: pixels of the `original` upright image, pixels of the image `resized` by the processor, `thousand`
    (0 to 1000 of each side) and `unit` (0 to 1). Sizes are (width, height) in pixels.

    Raises:
        ValueError: an unknown space.
    """
    before, after = extent(source, original, resized), extent(target, original, resized)
    if before is None or after is None or before == after:
        return box
    x, y = after[0] / before[0], after[1] / before[1]
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y)


def intersection(one: Box, other: Box) -> float:
    """Return the area of the intersection."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    return max(0.0, width) * max(0.0, height)


def iou(one: Box, other: Box) -> float:
    """Return the intersection over union, 0 to 1; 0 when either box has no area."""
    if one.area == 0 or other.area == 0:
        return 0.0
    shared = intersection(one, other)
    return shared / (one.area + other.area - shared)


def giou(one: Box, other: Box) -> float:
    """Return the generalized IoU, -1 to 1 (arXiv:1902.09630, eq. 4 of Algorithm 1); 0 when either box has no area."""
    if one.area == 0 or other.area == 0:
        return 0.0
    hull = Box(min(one.x1, other.x1), min(one.y1, other.y1), max(one.x2, other.x2), max(one.y2, other.y2)).area
    union = one.area + other.area - intersection(one, other)
    return intersection(one, other) / union - (hull - union) / hull
