"""Contours of a mask: closed curves of evenly spaced points, clockwise on the screen, largest part first."""

from __future__ import annotations

import numpy as np

POINTS = 256  # per outline; a least-squares fit on an even grid needs about the square of the number of terms
MIN_AREA = 0.02  # smaller parts, as a fraction of the whole area, are left out
MAX_PARTS = 4


def extract_contours(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outer borders of a mask's connected components, each (POINTS, 2) of (x, y) in pixels; [] if empty.

    A pixel (row, column) covers (column, row) to (column + 1, row + 1). The border runs half a pixel outside the
    centers of border pixels and cuts corners, so that filling it by pixel centers reproduces the component. Holes are
    filled. At most MAX_PARTS components are returned, none smaller than MIN_AREA of the total area.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    corner = np.array([left - 0.5, top - 0.5])  # position of the first point of the padded grid
    borders = [border + corner for border in _borders(mask[top : rows[-1] + 1, left : columns[-1] + 1])]
    areas = [abs(area(border)) for border in borders]
    order = sorted(range(len(borders)), key=lambda part: -areas[part])
    largest = [part for part in order[:MAX_PARTS] if areas[part] >= MIN_AREA * sum(areas)]
    return [resample(_clockwise(borders[part])) for part in largest]


def _borders(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outer borders by marching squares at 0.5, in coordinates of the padded mask."""
    import contourpy

    padded = np.pad(mask.astype(np.float64), 1)
    tracer = contourpy.contour_generator(z=padded, name="serial", fill_type=contourpy.FillType.OuterOffset)
    points, offsets = tracer.filled(0.5, 2.0)  # type: ignore[misc]  # its type is of every fill_type
    return [part[: ends[1] - 1] for part, ends in zip(points, offsets, strict=True)]  # the last repeats the first


def area(points: np.ndarray) -> float:
    """Return the signed area of a closed polygon, (N, 2): positive if clockwise on the screen, where y points down."""
    x, y = points[:, 0], points[:, 1]
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


def _clockwise(points: np.ndarray) -> np.ndarray:
    return points if area(points) > 0 else points[::-1]


def resample(points: np.ndarray, count: int = POINTS) -> np.ndarray:
    """Return `count` points, (count, 2), at equal distances along a closed polygon, starting at its first point."""
    closed = np.concatenate([points, points[:1]])
    steps = np.hypot(*np.diff(closed, axis=0).T)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.arange(count) * (length[-1] / count)
    return np.stack([np.interp(at, length, closed[:, 0]), np.interp(at, length, closed[:, 1])], axis=1)


def start_points(points: np.ndarray, count: int) -> list[int]:
    """Return `count` start points: the sharpest corner, and others at equal distances along the contour."""
    reach = len(points) // 32
    before = points - np.roll(points, reach, axis=0)
    after = np.roll(points, -reach, axis=0) - points
    turn = np.arctan2(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], (before * after).sum(axis=1))
    sharpest = int(np.argmax(np.abs(turn)))
    return [(sharpest + step * len(points) // count) % len(points) for step in range(count)]
