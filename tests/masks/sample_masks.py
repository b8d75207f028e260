"""Masks of many kinds: ellipses, stars, parts, holes, single pixels, photographs."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from sklearn.datasets import load_sample_image

from vlm_grpo.masks.raster import fill_polygon, regions_to_mask

ROWS, COLUMNS = np.mgrid[0:120, 0:160] + 0.5
KINDS = ("chebyshev", "fourier")


def ellipse(x: float, y: float, a: float, b: float, turn: float = 0.0) -> np.ndarray:
    """(120, 160); x, y, a and b in pixels, the turn in radians."""
    right, down = COLUMNS - x, ROWS - y
    along, across = right * math.cos(turn) + down * math.sin(turn), down * math.cos(turn) - right * math.sin(turn)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


def star(points: int, inner: float) -> np.ndarray:
    angles = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, inner, 50.0)
    outline = np.stack([80 + radius * np.cos(angles), 60 + radius * np.sin(angles)], axis=1)
    return regions_to_mask([fill_polygon(outline, 120, 160)], 120, 160)


@lru_cache
def photo_masks() -> list[np.ndarray]:
    """Bright regions of two photographs: ragged, with holes and many components."""
    masks = []
    for name, limit in (("flower.jpg", 120), ("china.jpg", 200)):
        grey = load_sample_image(name).mean(axis=2)[::3, ::3]
        masks.append(grey > limit)
    return masks


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@lru_cache
def odd_masks() -> dict[str, np.ndarray]:
    one, line = np.zeros((9, 7), bool), np.zeros((30, 40), bool)
    one[4, 2], line[7, 3:38] = True, True
    return {
        "ellipse": ellipse(70, 55, 50, 30, 0.4),
        "star": star(5, 20),
        "two parts": ellipse(40, 60, 25, 40) | ellipse(120, 60, 30, 20),
        "hole": ellipse(80, 60, 50, 40) & ~ellipse(80, 60, 30, 25),
        "one pixel": one,
        "line": line,
        "whole": np.ones((20, 30), bool),
        "corner": ellipse(0, 0, 60, 50),
        "flower": photo_masks()[0],
        "china": photo_masks()[1],
    }


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes filled: what cannot be reached from outside over edges of pixels."""
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(mask)
