"""Regions as run boundaries: sorted column-major pixel positions at which a region starts or ends, as in COCO's RLE.

Boundaries come in pairs, the first position inside and the first position outside again, from 0 to height * width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return run boundaries of the closed polygon `points`, (N, 2) as (x, y) in pixels, by the even-odd rule.

    Pixel (row, column) is inside if its center (column + 0.5, row + 0.5) is. The polygon is clipped to the image.
    """
    x, y = points[:, 0] - 0.5, points[:, 1] - 0.5  # pixel centers are integers
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    first = np.ceil(np.minimum(x, next_x)).clip(0, width).astype(np.int64)
    count = np.ceil(np.maximum(x, next_x)).clip(0, width).astype(np.int64) - first  # columns that each edge crosses
    edge = np.repeat(np.arange(len(x)), count)
    column = np.arange(len(edge)) + np.repeat(first - np.cumsum(count) + count, count)
    slope = (next_y - y)[edge] / (next_x - x)[edge]
    row = np.ceil(y[edge] + (column - x[edge]) * slope).clip(0, height).astype(np.int64)
    return np.sort(column * height + row)


def run_boundaries(mask: np.ndarray) -> np.ndarray:
    """Return run boundaries of a mask, (H, W), whose values are truthy inside."""
    flat = np.zeros(mask.size + 2, dtype=np.int8)
    flat[1:-1] = np.asarray(mask, dtype=bool).ravel(order="F")
    return np.flatnonzero(np.diff(flat))


def regions_to_mask(regions: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the union of regions as a mask, (H, W) of bool."""
    flat = np.zeros(height * width, dtype=bool)
    for boundaries in regions:
        changes = np.bincount(boundaries, minlength=flat.size + 1)[:-1]
        flat |= np.cumsum(changes) % 2 == 1
    return flat.reshape((width, height)).T


def region_iou(regions: Sequence[np.ndarray], truth: np.ndarray) -> float:
    """Return the IoU of the union of regions with another region, 0 to 1; 0 if all are empty."""
    positions = np.concatenate([truth, *regions])
    signs = np.ones(len(positions), dtype=np.int64)
    signs[1::2] = -1  # every region has an even number of boundaries
    order = np.argsort(positions, kind="stable")
    lengths = np.diff(positions[order])
    is_truth = order < len(truth)
    signs = signs[order]
    in_target = np.cumsum(np.where(is_truth, signs, 0))[:-1] > 0
    in_predicted = np.cumsum(np.where(is_truth, 0, signs))[:-1] > 0
    union = int(lengths[in_target | in_predicted].sum())
    return int(lengths[in_target & in_predicted].sum()) / union if union else 0.0
