"""Scenes of colored shapes that do not touch each other, with the exact box of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

SCALE = 4  # supersampling factor, for smooth edges
KINDS = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (30, 150, 60),
    "yellow": (240, 200, 20),
    "purple": (140, 70, 190),
    "orange": (245, 130, 20),
    "black": (30, 30, 30),
}
GROUNDS = ((250, 250, 247), (232, 240, 247), (243, 236, 226), (228, 238, 228))
GAP = 0.02  # minimum distance between shapes and to the border, as a fraction of the side
Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A shape centered at (x, y) with the half-width `radius`, all in fractions of the image's side."""

    kind: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    def outline(self) -> list[Point]:
        """Return the corners in fractions of the side; a circle is approximated by many."""
        return [(self.x + self.radius * x, self.y + self.radius * y) for x, y in unit_outline(self.kind)]

    def box(self, side: float) -> list[int]:
        """Return left, top, right, bottom in pixels of an image `side` wide and high, rounded."""
        xs, ys = zip(*self.outline(), strict=True)
        return [round(side * value) for value in (min(xs), min(ys), max(xs), max(ys))]


def unit_outline(kind: str) -> list[Point]:
    """Return the outline of a kind of shape inside -1..1."""
    if kind == "circle":
        return _on_circle(48, [1.0])
    if kind == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if kind == "triangle":
        return [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]
    if kind == "star":
        return _on_circle(10, [1.0, 0.42])
    if kind == "diamond":
        return [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)]
    arm = 0.34
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    cross = []
    for _ in range(4):
        cross += quarter
        quarter = [(-y, x) for x, y in quarter]
    return cross


def _on_circle(count: int, radii: list[float]) -> list[Point]:
    """Return points around the origin, the first at the top, that cycle through the radii."""
    angles = [2 * math.pi * number / count - math.pi / 2 for number in range(count)]
    return [
        (radii[number % len(radii)] * math.cos(angle), radii[number % len(radii)] * math.sin(angle))
        for number, angle in enumerate(angles)
    ]


def place_shapes(
    random: Random, names: list[tuple[str, str]], low: float = 0.06, high: float = 0.15, tries: int = 400
) -> list[Shape]:
    """Return non-touching shapes, one per (kind, color), at random places with half-widths from `low` to `high`.

    If there is too little space, half-widths shrink to a quarter of `low` at the least.
    """
    shapes: list[Shape] = []
    for kind, color in names:
        shapes.append(_free(random, kind, color, shapes, low, high, tries))
    return shapes


def _free(random: Random, kind: str, color: str, shapes: list[Shape], low: float, high: float, tries: int) -> Shape:
    for number in range(tries):
        shrink = 1 - 0.75 * number / tries
        radius = random.uniform(low, high) * shrink
        margin = radius + GAP
        shape = Shape(kind, color, random.uniform(margin, 1 - margin), random.uniform(margin, 1 - margin), radius)
        if all(_apart(shape, other) for other in shapes):
            return shape
    raise ValueError(f"no room for a {color} {kind} beside {len(shapes)} shapes")


def _apart(first: Shape, second: Shape) -> bool:
    """Return whether the bounding squares of two shapes have the minimum distance."""
    reach = first.radius + second.radius + GAP
    return max(abs(first.x - second.x), abs(first.y - second.y)) >= reach


def draw(shapes: list[Shape], side: int, ground: tuple[int, int, int]) -> Image.Image:
    """Return an image of the scene, `side` pixels wide and high."""
    return draw_outlines([(shape.outline(), COLORS[shape.color]) for shape in shapes], side, ground)


def draw_outlines(
    outlines: list[tuple[list[Point], tuple[int, int, int]]], side: int, ground: tuple[int, int, int]
) -> Image.Image:
    """Draw filled, anti-aliased outlines (in fractions of the side), later ones over earlier ones."""
    image = Image.new("RGB", (side * SCALE, side * SCALE), ground)
    pen = ImageDraw.Draw(image)
    for points, color in outlines:
        pen.polygon([(x * side * SCALE, y * side * SCALE) for x, y in points], fill=color)
    return image.reduce(SCALE)
