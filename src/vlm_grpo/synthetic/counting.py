"""Counting shapes of a kind or a color in one image, or in two images together (`counting`)."""

from __future__ import annotations

from random import Random

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.shape_scenes import COLORS, GROUNDS, KINDS, Shape, draw, place_shapes

MOST = 7  # maximum number of shapes in an image


def counting_example(random: Random, number: int, side: int) -> Example:
    """Return a counting question, whose answer may be 0; every third example has two images."""
    scenes = [_scene(random) for _ in range(2 if number % 3 == 2 else 1)]
    shapes = [shape for scene in scenes for shape in scene]
    criterion = random.choice(("kind", "color", "both"))
    model = random.choice(shapes) if random.random() < 0.85 else Shape(*_name(random), 0.5, 0.5, 0.1)
    names = {"kind": f"{model.kind}", "color": f"{model.color} shape", "both": model.name}
    keys = {"kind": lambda s: s.kind, "color": lambda s: s.color, "both": lambda s: s.name}
    count = sum(keys[criterion](shape) == keys[criterion](model) for shape in shapes)
    where = "in the two images together" if len(scenes) == 2 else "in the image"
    question = "<image>" * len(scenes) + f"How many {_plural(names[criterion])} are there {where}?"
    return Example(question, count, tuple(draw(scene, side, random.choice(GROUNDS)) for scene in scenes))


def _name(random: Random) -> tuple[str, str]:
    return random.choice(KINDS), random.choice(list(COLORS))


def _scene(random: Random) -> list[Shape]:
    """Return one to MOST shapes with two or three different names."""
    names = [_name(random) for _ in range(3)]
    return place_shapes(random, random.choices(names, k=random.randint(1, MOST)))


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"
