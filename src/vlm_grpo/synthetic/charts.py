"""Visual question answering: bar charts and signs, with the steps of the reasoning (`vqa`)."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.fonts import INK, draw_text
from vlm_grpo.synthetic.shape_scenes import COLORS

TOPICS = {
    "Apples sold": ("kg", ("Mon", "Tue", "Wed", "Thu", "Fri")),
    "Rain": ("mm", ("May", "Jun", "Jul", "Aug", "Sep")),
    "Distance run": ("km", ("Ann", "Ben", "Cem", "Dora", "Eli")),
    "Water used": ("l", ("Tap", "Bath", "Pool", "Pond", "Well")),
}
SIGNS = {"Bakery": "bread", "Pharmacy": "medicine", "Bookshop": "a novel", "Florist": "roses", "Optician": "glasses"}
FLOOR, ROOF = 0.82, 0.22  # vertical positions of the bars' base and maximum height, as fractions of the side


class Chart(NamedTuple):
    """The content of a bar chart."""

    title: str
    unit: str
    names: tuple[str, ...]
    values: tuple[int, ...]


def vqa_example(random: Random, number: int, side: int) -> Example:
    """Return a question on a bar chart (tallest bar with options, a value, a difference) or on a shop sign."""
    return random.choice((_tallest, _value, _difference, _sign))(random, side)


def _tallest(random: Random, side: int) -> Example:
    chart = _chart(random)
    best = chart.names[chart.values.index(max(chart.values))]
    letter = "ABCDE"[chart.names.index(best)]
    steps = [f"The bar of {best} is the tallest.", f"{best} is option {letter}."]
    question = f"<image>Which bar of the chart '{chart.title}' is the tallest?"
    return _example(question, letter, _draw_chart(chart, side), steps, options=list(chart.names))


def _value(random: Random, side: int) -> Example:
    chart = _chart(random)
    at = random.randrange(len(chart.names))
    steps = [f"The label above the bar of {chart.names[at]} reads {chart.values[at]}.", f"The unit is {chart.unit}."]
    question = f"<image>How much does the chart '{chart.title}' show for {chart.names[at]}?"
    return _example(question, f"{chart.values[at]} {chart.unit}", _draw_chart(chart, side), steps)


def _difference(random: Random, side: int) -> Example:
    chart = _chart(random)
    more, less = sorted(random.sample(range(len(chart.names)), 2), key=lambda at: -chart.values[at])
    by = chart.values[more] - chart.values[less]
    steps = [f"The bar of {chart.names[at]} reads {chart.values[at]} {chart.unit}." for at in (more, less)]
    steps.append(f"{chart.values[more]} minus {chart.values[less]} is {by}.")
    question = f"<image>By how much is {chart.names[more]} above {chart.names[less]} in the chart '{chart.title}'?"
    return _example(question, f"{by} {chart.unit}", _draw_chart(chart, side), steps)


def _sign(random: Random, side: int) -> Example:
    shop = random.choice(list(SIGNS))
    opens, closes = random.randint(6, 11), random.randint(15, 22)
    color = random.choice(list(COLORS))
    image = _draw_sign(shop, f"{opens}:00 - {closes}:00", COLORS[color], side)
    if random.random() < 0.5:
        steps = [f"The sign reads {shop.upper()}.", f"A {shop.lower()} sells {SIGNS[shop]}."]
        return _example("<image>What can be bought behind this sign?", SIGNS[shop], image, steps)
    steps = [f"The line below {shop.upper()} reads {opens}:00 - {closes}:00.", f"The shop opens at {opens}:00."]
    return _example("<image>For how many hours a day is this shop open?", f"{closes - opens} hours", image, steps)


def _example(
    question: str, answer: str, image: Image.Image, steps: list[str], options: list[str] | None = None
) -> Example:
    columns = {"reference_steps": steps, **({"options": options} if options else {})}
    return Example(question, answer, (image,), columns=columns)


def _chart(random: Random) -> Chart:
    """Return a chart with three to five bars of different heights."""
    title = random.choice(list(TOPICS))
    unit, names = TOPICS[title]
    count = random.randint(3, len(names))
    return Chart(title, unit, names[:count], tuple(random.sample(range(5, 60), count)))


def _draw_chart(chart: Chart, side: int) -> Image.Image:
    """Draw bars with their values above and their names below."""
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    draw_text(pen, (side / 2, side * 0.09), f"{chart.title} ({chart.unit})", side * 0.075)
    pen.line([(side * 0.08, side * FLOOR), (side * 0.95, side * FLOOR)], fill=INK, width=max(1, side // 160))
    slot = side * 0.87 / len(chart.names)
    for at, (name, value) in enumerate(zip(chart.names, chart.values, strict=True)):
        middle = side * 0.08 + slot * (at + 0.5)
        top = side * (FLOOR - (FLOOR - ROOF) * value / max(chart.values))
        color = list(COLORS.values())[at]
        pen.rectangle([middle - slot * 0.32, top, middle + slot * 0.32, side * FLOOR], fill=color)
        draw_text(pen, (middle, top - side * 0.035), str(value), side * 0.06)
        draw_text(pen, (middle, side * (FLOOR + 0.06)), name, side * 0.06)
    return image


def _draw_sign(shop: str, hours: str, color: tuple[int, int, int], side: int) -> Image.Image:
    """Return a board on a wall with the name of the shop and its hours."""
    image = Image.new("RGB", (side, side), (205, 196, 184))
    pen = ImageDraw.Draw(image)
    for row in range(8):  # bricks
        y = row * side / 8
        pen.line([(0, y), (side, y)], fill=(188, 178, 165))
        for column in range(5):
            x = (column + 0.5 * (row % 2)) * side / 4
            pen.line([(x, y), (x, y + side / 8)], fill=(188, 178, 165))
    pen.rounded_rectangle([side * 0.06, side * 0.3, side * 0.94, side * 0.68], radius=side * 0.04, fill=color)
    paper = "black" if sum(color) > 380 else "white"
    draw_text(pen, (side / 2, side * 0.43), shop.upper(), side * 0.13, fill=paper)
    draw_text(pen, (side / 2, side * 0.58), hours, side * 0.085, fill=paper)
    return image
