"""Simplify a contour to the vertices that preserve it best."""

from __future__ import annotations

import numpy as np


def simplify_polygon(points: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the points of a closed contour, (count, 2) in their order.

    Douglas-Peucker simplification (Cartographica 10, 1973) to a number of points instead of a tolerance: start with the
    first point and the one farthest from it, then repeatedly add the point that is farthest from its side.
    """
    total = len(points)
    closed = np.concatenate([points, points[:1]])
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    sides = {(0, far): _farthest_point(closed, 0, far), (far, total): _farthest_point(closed, far, total)}
    while len(sides) < count:
        begin, end = max(sides, key=lambda side: sides[side][0])
        distance, middle = sides.pop((begin, end))
        if distance <= 0:
            sides[begin, end] = (distance, middle)
            break
        sides[begin, middle] = _farthest_point(closed, begin, middle)
        sides[middle, end] = _farthest_point(closed, middle, end)
    return points[sorted(begin for begin, _ in sides)]


def _farthest_point(points: np.ndarray, begin: int, end: int) -> tuple[float, int]:
    """Return distance and index of the point between two others that is farthest from their side."""
    between = points[begin + 1 : end]
    if not len(between):
        return 0.0, begin
    side = points[end] - points[begin]
    length2 = max(float(side @ side), 1e-12)
    along = ((between - points[begin]) @ side / length2).clip(0, 1)
    distance = ((points[begin] + along[:, None] * side - between) ** 2).sum(axis=1)
    best = int(np.argmax(distance))
    return float(distance[best]), begin + 1 + best
