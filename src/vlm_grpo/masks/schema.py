"""What a written shape must look like, and its numbers: a box, and rows relative to the box's centre and half-size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vlm_grpo.answer_parser import extract_json
from vlm_grpo.masks.contours import MOST

KEYS: Mapping[str, tuple[str, ...]] = {"chebyshev": ("x", "y"), "fourier": ("x", "y"), "polygon": ("points",)}
TERMS = 8  # of a shape whose data say nothing else
UNIT = 100  # a half-size of the box in the numbers of a shape
FEWEST_TERMS, MOST_TERMS = 3, 64
LARGEST_NUMBER = 1000  # ten half-sizes: no outline leaves its box that far
LARGEST_SIDE = 100_000


class Part(NamedTuple):
    """One outline: `box` as (x1, y1, x2, y2) in the space of the answer, `rows` (n, 2) of coefficients or points."""

    box: np.ndarray
    rows: np.ndarray


def as_object(value: Any) -> Any:
    """A shape as it is, or the JSON value that a text holds; None for a text without one."""
    return extract_json(value) if isinstance(value, str) else value


def shape_fault(value: Any, terms: int | None = None) -> str | None:
    """What must hold and does not, of a shape or its JSON text; None for a well-formed one.

    `terms` is how many numbers each axis must have (a polygon: at most as many points); None takes any number from
    3 to 64.
    """
    value = as_object(value)
    if not isinstance(value, Mapping) or len(value) != 1 or not isinstance(next(iter(value)), str):
        return f"an object with one key, {' or '.join(KEYS)}"
    codec, parts = next(iter(value.items()))
    if codec not in KEYS:
        return f"an object with one key, {' or '.join(KEYS)}"
    if not isinstance(parts, list | tuple) or not 1 <= len(parts) <= MOST:
        return f"a list of 1 to {MOST} shapes in {codec!r}"
    return next((fault for part in parts if (fault := _part_fault(codec, part, terms))), None)


def read_shape(value: Any, terms: int | None = None) -> tuple[str, list[Part]] | None:
    """The codec and the parts of a shape or its JSON text; None when `shape_fault` finds something."""
    value = as_object(value)
    if shape_fault(value, terms) is not None:
        return None
    ((codec, parts),) = value.items()
    return codec, [Part(np.array(part["bbox_2d"], dtype=float), _rows(codec, part)) for part in parts]


def write_part(codec: str, box: list[float], rows: np.ndarray) -> dict[str, Any]:
    """One part as it stands in an answer; `rows` are whole numbers, (n, 2)."""
    numbers = rows.astype(int)
    values = [numbers.tolist()] if codec == "polygon" else numbers.T.tolist()
    return {"bbox_2d": box, **dict(zip(KEYS[codec], values, strict=True))}


def _rows(codec: str, part: Mapping[str, Any]) -> np.ndarray:
    if codec == "polygon":
        return np.array(part["points"], dtype=float)
    return np.array([part["x"], part["y"]], dtype=float).T


def _part_fault(codec: str, part: Any, terms: int | None) -> str | None:
    keys = ("bbox_2d", *KEYS[codec])
    if not isinstance(part, Mapping) or set(part) != set(keys):
        return f"shapes with exactly {', '.join(keys)}"
    box = part["bbox_2d"]
    if not _are_numbers(box, LARGEST_SIDE) or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        return "bbox_2d as [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    return _points_fault(part["points"], terms) if codec == "polygon" else _axes_fault(part["x"], part["y"], terms)


def _axes_fault(x: Any, y: Any, terms: int | None) -> str | None:
    if not all(_are_numbers(axis, LARGEST_NUMBER) for axis in (x, y)):
        return f"x and y as lists of numbers from -{LARGEST_NUMBER} to {LARGEST_NUMBER}"
    least, most = (FEWEST_TERMS, MOST_TERMS) if terms is None else (terms, terms)
    if len(x) != len(y) or not least <= len(x) <= most:
        return f"{least if least == most else f'{least} to {most}'} numbers in x and in y"
    return None


def _points_fault(points: Any, terms: int | None) -> str | None:
    most = MOST_TERMS if terms is None else terms
    if not isinstance(points, list | tuple) or not FEWEST_TERMS <= len(points) <= most:
        return f"{FEWEST_TERMS} to {most} points"
    if not all(_are_numbers(point, LARGEST_NUMBER) and len(point) == 2 for point in points):
        return f"points as [x, y] with numbers from -{LARGEST_NUMBER} to {LARGEST_NUMBER}"
    return None


def _are_numbers(values: Any, largest: float) -> bool:
    """A list of numbers that are finite and not beyond `largest`; true and false are no numbers."""
    return isinstance(values, list | tuple) and all(
        type(number) in (int, float) and abs(number) <= largest for number in values
    )
