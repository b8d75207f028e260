"""Open-vocabulary detection: find all shapes of one kind; some images have none (`ovd`)."""

from __future__ import annotations

from random import Random

from vlm_grpo.records import JsonObject
from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.shape_scenes import COLORS, GROUNDS, KINDS, Shape, draw, place_shapes

SPACE = 1000  # positions are in thousandths of each side
EMPTY = 0.2  # fraction of images without the requested kind


def ovd_example(random: Random, number: int, side: int) -> Example:
    """Return one to four shapes of the requested kind, or none, among one to three of other kinds."""
    kind, *others = random.sample(KINDS, len(KINDS))
    count = 0 if random.random() < EMPTY else random.randint(1, 4)
    names = [kind] * count + random.choices(others, k=random.randint(1, 3))
    shapes = place_shapes(random, [(name, random.choice(list(COLORS))) for name in names])
    answer = [gold_detection(shape) for shape in sorted(shapes[:count], key=lambda shape: (shape.x, shape.y))] or "None"
    random.shuffle(shapes)
    return Example(f"<image>Find every {kind}.", answer, (draw(shapes, side, random.choice(GROUNDS)),))


def gold_detection(shape: Shape) -> JsonObject:
    """Return the gold detection of a shape: its box in thousandths, with full confidence."""
    return {"Position": shape.box(SPACE), "Confidence": 1.0}
