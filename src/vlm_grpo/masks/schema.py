"""The schema of a shape in an answer: a box, and rows relative to the box's center and half-size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np

from vlm_grpo.answer_parser import extract_json
from vlm_grpo.masks.contours import MAX_PARTS
from vlm_grpo.records import JsonObject

KEYS: Mapping[str, tuple[str, ...]] = {"chebyshev": ("x", "y"), "fourier": ("x", "y"), "polygon": ("points",)}
TERMS = 8  # coefficients per axis, unless the record has a column `terms`
UNIT = 100  # value of one half-size of the box
MIN_TERMS, MAX_TERMS = 3, 64
MAX_NUMBER = 1000  # ten half-sizes, more than any outline needs
MAX_COORDINATE = 100_000


class Part(NamedTuple):
    """One contour: `box` as (x1, y1, x2, y2) in the space of the answer, `rows` (n, 2) of coefficients or points."""

    box: np.ndarray
    rows: np.ndarray


def parse_object(value: object) -> object:
    """Return the JSON value of a text, None if it has none; any other value unchanged."""
    return extract_json(value) if isinstance(value, str) else value


def validate_shape(value: object, terms: int | None = None) -> str | None:
    """Return what is expected instead of an invalid shape or JSON text; None for a well-formed one.

    `terms` is the required number of coefficients per axis (for a polygon, the maximum number of points); None accepts
    3 to 64.
    """
    value = parse_object(value)
    if not isinstance(value, Mapping) or len(value) != 1 or not isinstance(next(iter(value)), str):
        return f"an object with one key, {' or '.join(KEYS)}"
    codec, parts = next(iter(value.items()))
    if codec not in KEYS:
        return f"an object with one key, {' or '.join(KEYS)}"
    if not isinstance(parts, list | tuple) or not 1 <= len(parts) <= MAX_PARTS:
        return f"a list of 1 to {MAX_PARTS} shapes in {codec!r}"
    return next((fault for part in parts if (fault := _validate_part(codec, part, terms))), None)


def read_shape(value: object, terms: int | None = None) -> tuple[str, list[Part]] | None:
    """Return codec and parts of a shape or its JSON text; None for one that `validate_shape` rejects."""
    value = parse_object(value)
    if validate_shape(value, terms) is not None:
        return None
    if not isinstance(value, Mapping):
        return None
    ((codec, parts),) = value.items()
    return codec, [Part(np.array(part["bbox_2d"], dtype=float), _rows(codec, part)) for part in parts]


def write_part(codec: str, box: list[float], rows: np.ndarray) -> JsonObject:
    """Return one part as written in an answer; `rows` are integers, (n, 2)."""
    numbers = rows.astype(int)
    values = [numbers.tolist()] if codec == "polygon" else numbers.T.tolist()
    return {"bbox_2d": box, **dict(zip(KEYS[codec], values, strict=True))}


def _rows(codec: str, part: Mapping[str, object]) -> np.ndarray:
    if codec == "polygon":
        return np.array(part["points"], dtype=float)
    return np.array([part["x"], part["y"]], dtype=float).T


def _validate_part(codec: str, part: object, terms: int | None) -> str | None:
    keys = ("bbox_2d", *KEYS[codec])
    if not isinstance(part, Mapping) or set(part) != set(keys):
        return f"shapes with exactly {', '.join(keys)}"
    box = part["bbox_2d"]
    if not _are_numbers(box, MAX_COORDINATE) or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        return "bbox_2d as [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    return (
        _validate_points(part["points"], terms) if codec == "polygon" else _validate_axes(part["x"], part["y"], terms)
    )


def _validate_axes(x: object, y: object, terms: int | None) -> str | None:
    if not _are_numbers(x, MAX_NUMBER) or not _are_numbers(y, MAX_NUMBER):
        return f"x and y as lists of numbers from -{MAX_NUMBER} to {MAX_NUMBER}"
    least, most = (MIN_TERMS, MAX_TERMS) if terms is None else (terms, terms)
    if len(x) != len(y) or not least <= len(x) <= most:
        return f"{least if least == most else f'{least} to {most}'} numbers in x and in y"
    return None


def _validate_points(points: object, terms: int | None) -> str | None:
    most = MAX_TERMS if terms is None else terms
    if not isinstance(points, list | tuple) or not MIN_TERMS <= len(points) <= most:
        return f"{MIN_TERMS} to {most} points"
    if not all(_are_numbers(point, MAX_NUMBER) and len(point) == 2 for point in points):
        return f"points as [x, y] with numbers from -{MAX_NUMBER} to {MAX_NUMBER}"
    return None


def _are_numbers(values: object, largest: float) -> TypeGuard[Sequence[float]]:
    """Return whether a value is a list of finite numbers (not booleans) with an absolute value of at most `largest`."""
    return isinstance(values, list | tuple) and all(
        type(number) in (int, float) and abs(number) <= largest for number in values
    )
