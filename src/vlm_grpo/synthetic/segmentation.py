"""Segmentation: ellipses, stars, and ellipses behind a post, which have two parts; with the gold mask (`seg`)."""

from __future__ import annotations

import math
from random import Random

import numpy as np

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.shape_scenes import COLORS, GROUNDS, Point, Shape, draw_outlines

POST = (120, 112, 104)


def seg_example(random: Random, number: int, side: int) -> Example:
    """Return an ellipse, a star or an ellipse behind a post (alternating); `mask` is the gold mask as COCO RLE."""
    from vlm_grpo.masks import encode_mask, write_rle

    kind = ("ellipse", "star", "hidden")[number % 3]
    color, other = random.sample(list(COLORS), 2)
    outline = _outline(random, kind)
    covers = [_post(outline)] if kind == "hidden" else []
    beside = _beside(random, outline, other)
    name = "ellipse behind the post" if kind == "hidden" else kind
    parts = [(beside.outline(), COLORS[other]), (outline, COLORS[color]), *((cover, POST) for cover in covers)]
    mask = _mask(outline, covers, side)
    return Example(
        f"<image>the {color} {name}",
        encode_mask(mask),
        (draw_outlines(parts, side, random.choice(GROUNDS)),),
        columns={"mask": write_rle(mask), "box_space": "thousand"},
    )


def _outline(random: Random, kind: str) -> list[Point]:
    """Return a rotated ellipse or star in fractions of the side, away from the border."""
    long = random.uniform(0.2, 0.3)
    short = long * random.uniform(0.5, 0.9)
    x, y = (random.uniform(long + 0.03, 0.97 - long) for _ in range(2))
    turn = random.uniform(-0.5, 0.5) if kind == "hidden" else random.uniform(0, math.pi)
    count = 10 if kind == "star" else 72
    points = []
    for number in range(count):
        angle = 2 * math.pi * number / count
        reach = 0.5 if kind == "star" and number % 2 else 1.0
        across, along = long * reach * math.cos(angle), (long if kind == "star" else short) * reach * math.sin(angle)
        cos, sin = math.cos(turn), math.sin(turn)
        points.append((x + across * cos - along * sin, y + across * sin + along * cos))
    return points


def _post(outline: list[Point]) -> list[Point]:
    """Return a post from top to bottom through the middle of an outline."""
    middle = sum(x for x, _ in outline) / len(outline)
    return [(middle - 0.04, 0.0), (middle + 0.04, 0.0), (middle + 0.04, 1.0), (middle - 0.04, 1.0)]


def _beside(random: Random, outline: list[Point], color: str) -> Shape:
    """Return a small square of another color, in the corner farthest from an outline."""
    x, y = (sum(values) / len(outline) for values in zip(*outline, strict=True))
    left, top = (0.1 if value > 0.5 else 0.9 for value in (x, y))
    return Shape("square", color, left, top, random.uniform(0.05, 0.07))


def _mask(outline: list[Point], covers: list[list[Point]], side: int) -> np.ndarray:
    """Return the mask of an outline, (side, side) of bool: pixels of which at least half is visible."""
    parts = [(outline, (255, 255, 255)), *((cover, (0, 0, 0)) for cover in covers)]
    return np.asarray(draw_outlines(parts, side, (0, 0, 0)))[..., 0] > 127
