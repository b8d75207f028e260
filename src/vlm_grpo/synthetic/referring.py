"""Referring expressions: several shapes and a description that fits exactly one of them (`rec`, `grounding`)."""

from __future__ import annotations

from random import Random

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.shape_scenes import COLORS, GROUNDS, KINDS, Shape, draw, place_shapes

# Words that distinguish two shapes with the same name, and a key that is larger for the shape described by the word.
EXTREMES = {
    "larger": lambda shape: shape.radius,
    "smaller": lambda shape: -shape.radius,
    "left": lambda shape: -shape.x,
    "right": lambda shape: shape.x,
    "upper": lambda shape: -shape.y,
    "lower": lambda shape: shape.y,
}
CLEAR = {"larger": 1.3, "smaller": 1.3}  # minimum ratio of the sizes
DISTANCE = 0.15  # minimum distance, as a fraction of the side, of shapes distinguished by their position


def rec_example(random: Random, number: int, side: int) -> Example:
    """Return three to six shapes and a description of one; in every other example two share kind and color."""
    if number % 2:
        shapes, target, text = _twins(random)
    else:
        shapes = place_shapes(random, _names(random, random.randint(3, 6)))
        target = shapes[0]
        text = f"the {target.name}"
    random.shuffle(shapes)
    image = draw(shapes, side, random.choice(GROUNDS))
    return Example(f"<image>{text}", {"bbox_2d": target.box(side)}, (image,), columns={"box_space": "original"})


def grounding_example(random: Random, number: int, side: int) -> Example:
    """Return a `rec` example; the task `grounding` asks for the box alone."""
    return rec_example(random, number, side)


def _names(random: Random, count: int) -> list[tuple[str, str]]:
    """Return distinct pairs of kind and color."""
    return random.sample([(kind, color) for kind in KINDS for color in COLORS], count)


def _twins(random: Random) -> tuple[list[Shape], Shape, str]:
    """Return shapes of which the first two share a name, the described one, and its description."""
    while True:
        names = _names(random, random.randint(2, 4))
        shapes = place_shapes(random, [names[0], *names])
        words = [word for word in EXTREMES if _is_clear(word, shapes[0], shapes[1])]
        if words:
            word = random.choice(words)
            target = max(shapes[:2], key=EXTREMES[word])
            return shapes, target, f"the {word} {target.name}"


def _is_clear(word: str, first: Shape, second: Shape) -> bool:
    """Return whether the word clearly fits only one of the two shapes."""
    if word in CLEAR:
        return max(first.radius, second.radius) >= CLEAR[word] * min(first.radius, second.radius)
    return abs(EXTREMES[word](first) - EXTREMES[word](second)) >= DISTANCE
