"""Encode instance masks as short lists of numbers that a model can generate, and decode them.

`{"chebyshev": [{"bbox_2d": [x1, y1, x2, y2], "x": [8 numbers], "y": [8 numbers]}, ...]}`: each connected component of
the mask is a closed curve; x and y are its coefficients relative to the center of the box, in hundredths of the box's
half-size. The box is in the coordinate space of the answer, by default 0 to 1000 per side (see `extent`). A `fourier`
shape has the same format; a `polygon` has `"points": [[x, y], ...]` in the same units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlm_grpo.masks.contours import extract_contours, start_points
from vlm_grpo.masks.curves import Series
from vlm_grpo.masks.raster import fill_polygon, region_iou, regions_to_mask, run_boundaries
from vlm_grpo.masks.rle import RLEMask, read_rle, write_rle
from vlm_grpo.masks.schema import MAX_TERMS, MIN_TERMS, TERMS, UNIT, read_shape, validate_shape, write_part
from vlm_grpo.masks.simplify import simplify_polygon
from vlm_grpo.records import JsonObject
from vlm_grpo.registry import Registry

__all__ = [
    "CODECS",
    "MAX_TERMS",
    "MIN_TERMS",
    "TERMS",
    "RLEMask",
    "decode_mask",
    "decode_regions",
    "encode_mask",
    "fit_iou",
    "read_rle",
    "read_shape",
    "region_iou",
    "validate_shape",
    "write_rle",
]

Extent = tuple[float, float]


@dataclass(frozen=True)
class Codec:
    """Converts a contour to numbers and back.

    `fit(points, terms)` converts an outline, (N, 2), to rows, (terms, 2); `curve(rows)` returns the polygon to fill.
    """

    name: str
    fit: Callable[[np.ndarray, int], np.ndarray]
    curve: Callable[[np.ndarray], np.ndarray]


@lru_cache(maxsize=64)
def _series(kind: str, terms: int) -> Series:
    return Series(kind, terms)


def _series_codec(kind: str) -> Codec:
    return Codec(
        kind,
        lambda points, terms: _series(kind, terms).fit(points),
        lambda rows: _series(kind, len(rows)).even_values @ rows,
    )


CODECS: Registry[Codec] = Registry(
    "codec",
    {
        "chebyshev": _series_codec("chebyshev"),
        "fourier": _series_codec("fourier"),
        "polygon": Codec("polygon", simplify_polygon, lambda rows: rows),
    },
)


def encode_mask(
    mask: np.ndarray, codec: str = "chebyshev", terms: int = TERMS, starts: int = 1, extent: Extent = (1000, 1000)
) -> JsonObject:
    """Return the shape of a mask, (H, W): one part for each of its 4 largest connected components, with holes filled.

    Args:
        mask: true inside; at least one pixel.
        codec: a name in CODECS.
        terms: coefficients per axis; the maximum number of points of a polygon.
        starts: number of start points to try; the one with the highest IoU is kept.
        extent: width and height of the image in the coordinate space of the answer; boxes are rounded to integers in
            it.

    Raises:
        KeyError: the codec is unknown.
        ValueError: the mask is empty or not (H, W), or terms or starts are out of range.
    """
    entry = CODECS[codec]
    if not MIN_TERMS <= terms <= MAX_TERMS:
        raise ValueError(f"terms must be from {MIN_TERMS} to {MAX_TERMS}, got {terms}")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(f"a mask must be (height, width) with at least one pixel, got {mask.shape}, {mask.sum()} set")
    height, width = mask.shape
    scale = np.array([extent[0] / width, extent[1] / height])
    return {codec: [_encode_part(entry, points, terms, starts, scale, mask.shape) for points in extract_contours(mask)]}


def _encode_part(
    codec: Codec, points: np.ndarray, terms: int, starts: int, scale: np.ndarray, size: tuple[int, int]
) -> JsonObject:
    """Return the part with the highest IoU with the contour's region, among several start points."""
    box = _box(points * scale)
    rotations = [np.roll(points, -start, axis=0) for start in start_points(points, starts)]
    candidates = [_fit_rows(codec, turned, terms, box, scale) for turned in rotations]
    if starts > 1:
        truth = fill_polygon(points, *size)
        scores = [region_iou([fill_polygon(_curve(codec, rows, box, scale), *size)], truth) for rows in candidates]
        candidates = [candidates[int(np.argmax(scores))]]
    return write_part(codec.name, box.tolist(), candidates[0])


def _box(points: np.ndarray) -> np.ndarray:
    """Return the bounding box of points, rounded to integers, (4,), and at least 1 wide and high."""
    low, high = np.rint(points.min(axis=0)), np.rint(points.max(axis=0))
    return np.concatenate([low, np.maximum(high, low + 1)]).astype(int)


def _fit_rows(codec: Codec, points: np.ndarray, terms: int, box: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return coefficients or vertices of a contour in pixels, relative to the box, rounded.

    The fit is computed in pixels, where both axes have the same scale.
    """
    center, half = _center_and_half(box, scale)
    return np.rint(codec.fit(points - center, terms) / half * UNIT)


def _curve(codec: Codec, rows: np.ndarray, box: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the curve of rows in pixels, (N, 2)."""
    center, half = _center_and_half(box, scale)
    return codec.curve(rows) * (half / UNIT) + center


def _center_and_half(box: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return center and half-size of a box in pixels, (2,) each."""
    return (box[:2] + box[2:]) / 2 / scale, (box[2:] - box[:2]) / 2 / scale


def decode_regions(
    value: object, height: int, width: int, extent: Extent = (1000, 1000), terms: int | None = None
) -> list[np.ndarray] | None:
    """Return the run boundaries (raster.py) of each part of a shape; None for an invalid shape, as in `decode_mask`."""
    shape = read_shape(value, terms)
    if shape is None:
        return None
    codec, scale = CODECS[shape[0]], np.array([extent[0] / width, extent[1] / height])
    return [fill_polygon(_curve(codec, part.rows, part.box, scale), height, width) for part in shape[1]]


def decode_mask(
    value: object, height: int, width: int, extent: Extent = (1000, 1000), terms: int | None = None
) -> np.ndarray | None:
    """Return the mask, bool (height, width), of a shape or its JSON text: the union of its parts.

    None if the shape is not well-formed (see `validate_shape`, also for `terms`).
    """
    parts = decode_regions(value, height, width, extent, terms)
    return None if parts is None else regions_to_mask(parts, height, width)


def fit_iou(mask: np.ndarray, value: object, extent: Extent = (1000, 1000)) -> float:
    """Return the IoU, 0 to 1, of a mask with a shape, the upper bound of its reward; 0 for an invalid shape."""
    height, width = mask.shape
    parts = decode_regions(value, height, width, extent)
    return 0.0 if parts is None else region_iou(parts, run_boundaries(mask))
