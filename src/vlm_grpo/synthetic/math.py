r"""Math problems in images: expressions and geometric figures with numbers (`math`)."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from PIL import Image, ImageDraw

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.fonts import INK, draw_text, draw_times_sign

LINE = 90  # the line width is 1 / LINE of the side
FILL = (222, 233, 246)


def math_example(random: Random, number: int, side: int) -> Example:
    """Return an arithmetic or geometry question (one of six kinds) whose answer is LaTeX."""
    factory = random.choice((_expression, _fractions, _right_triangle, _angle, _rectangle, _circle))
    question, answer, image = factory(random, side)
    return Example(f"<image>{question}", answer, (image,))


def _paper(side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (side, side), (252, 252, 248))
    return image, ImageDraw.Draw(image)


def _expression(random: Random, side: int) -> tuple[str, str, Image.Image]:
    one, two, three = random.randint(2, 40), random.randint(2, 12), random.randint(2, 12)
    sign = random.choice("+-")
    image, pen = _paper(side)
    draw_text(pen, (side * 0.45, side / 2), f"{one} {sign} {two}", side * 0.13, anchor="rm")
    draw_times_sign(pen, (side * 0.52, side / 2), side * 0.06)
    draw_text(pen, (side * 0.59, side / 2), f"{three} = ?", side * 0.13, anchor="lm")
    return "What is the value?", str(one + two * three if sign == "+" else one - two * three), image


def _fractions(random: Random, side: int) -> tuple[str, str, Image.Image]:
    """Return the sum of two fractions, in lowest terms."""
    proper = [Fraction(over, under) for under in range(2, 10) for over in range(1, 10) if math.gcd(over, under) == 1]
    parts = random.choices(proper, k=2)
    image, pen = _paper(side)
    for part, x in zip(parts, (0.22, 0.56), strict=True):
        draw_text(pen, (side * x, side * 0.41), str(part.numerator), side * 0.14)
        draw_text(pen, (side * x, side * 0.59), str(part.denominator), side * 0.14)
        pen.line([(side * (x - 0.09), side / 2), (side * (x + 0.09), side / 2)], fill=INK, width=max(1, side // LINE))
    draw_text(pen, (side * 0.39, side / 2), "+", side * 0.14)
    draw_text(pen, (side * 0.78, side / 2), "= ?", side * 0.14)
    return "What is the sum?", latex_fraction(sum(parts, Fraction(0))), image


def latex_fraction(value: Fraction) -> str:
    r"""Return a fraction as LaTeX, `\frac{3}{4}`; an integer as it is."""
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def latex_root(square: int) -> str:
    r"""Return a square root as LaTeX in simplest form: 5, `\sqrt{13}`, `2\sqrt{5}`."""
    outside = max(root for root in range(1, math.isqrt(square) + 1) if square % (root * root) == 0)
    inside = square // (outside * outside)
    if inside == 1:
        return str(outside)
    return (str(outside) if outside > 1 else "") + rf"\sqrt{{{inside}}}"


def _right_triangle(random: Random, side: int) -> tuple[str, str, Image.Image]:
    """Return a right triangle with two given legs that asks for the hypotenuse x."""
    across, up = random.randint(2, 12), random.randint(2, 12)
    unit = side * 0.6 / max(across, up)
    left, low = side / 2 - across * unit / 2, side / 2 + up * unit / 2
    corner, right, top = (left, low), (left + across * unit, low), (left, low - up * unit)
    image, pen = _paper(side)
    pen.polygon([corner, right, top], fill=FILL, outline=INK, width=max(1, side // LINE))
    mark = side * 0.05
    pen.line([(left, low - mark), (left + mark, low - mark), (left + mark, low)], fill=INK, width=max(1, side // LINE))
    draw_text(pen, (left + across * unit / 2, low + side * 0.06), str(across), side * 0.09)
    draw_text(pen, (left - side * 0.07, low - up * unit / 2), str(up), side * 0.09)
    length = math.hypot(across, up)
    away = side * 0.07
    middle = (left + across * unit / 2 + away * up / length, low - up * unit / 2 - away * across / length)
    draw_text(pen, middle, "x", side * 0.09)
    return "The triangle has a right angle. Find x.", latex_root(across**2 + up**2), image


def _angle(random: Random, side: int) -> tuple[str, str, Image.Image]:
    """Return a triangle with two given angles that asks for the third, x."""
    one, two = random.randint(35, 75), random.randint(35, 75)
    left, right, low = side * 0.12, side * 0.88, side * 0.8
    near, far = math.tan(math.radians(one)), math.tan(math.radians(two))
    height = (right - left) * near * far / (near + far)
    scale = min(1.0, side * 0.62 / height)
    middle = (left + right) / 2
    left, right, height = middle - (middle - left) * scale, middle + (right - middle) * scale, height * scale
    top = (left + height / near, low - height)
    image, pen = _paper(side)
    pen.polygon([(left, low), (right, low), top], fill=FILL, outline=INK, width=max(1, side // LINE))
    inside = side * 0.13
    for (x, y), turn, text in (
        ((left, low), one / 2, f"{one}°"),
        ((right, low), 180 - two / 2, f"{two}°"),
        (top, -90 + (one - two) / 2, "x"),
    ):
        angle = math.radians(turn)
        draw_text(pen, (x + inside * math.cos(angle), y - inside * math.sin(angle)), text, side * 0.065)
    return "How many degrees is the angle x?", str(180 - one - two), image


def _rectangle(random: Random, side: int) -> tuple[str, str, Image.Image]:
    wide, high = random.randint(3, 15), random.randint(3, 15)
    unit = side * 0.62 / max(wide, high)
    half_width, half_height = wide * unit / 2, high * unit / 2
    image, pen = _paper(side)
    box = [side / 2 - half_width, side / 2 - half_height, side / 2 + half_width, side / 2 + half_height]
    pen.rectangle(box, fill=FILL, outline=INK, width=max(1, side // LINE))
    draw_text(pen, (side / 2, box[3] + side * 0.06), str(wide), side * 0.09)
    draw_text(pen, (box[0] - side * 0.07, side / 2), str(high), side * 0.09)
    if random.random() < 0.5:
        return "What is the area of the rectangle?", str(wide * high), image
    return "What is the perimeter of the rectangle?", str(2 * (wide + high)), image


def _circle(random: Random, side: int) -> tuple[str, str, Image.Image]:
    radius = random.randint(2, 15)
    image, pen = _paper(side)
    reach = side * (0.2 + 0.15 * radius / 15)
    middle = side / 2
    box = [middle - reach, middle - reach, middle + reach, middle + reach]
    pen.ellipse(box, fill=FILL, outline=INK, width=max(1, side // LINE))
    pen.line([(middle, middle), (middle + reach, middle)], fill=INK, width=max(1, side // LINE))
    draw_text(pen, (middle + reach / 2, middle - side * 0.06), str(radius), side * 0.09)
    if random.random() < 0.5:
        return r"What is the area of the circle, in terms of \pi?", rf"{radius**2}\pi", image
    return r"What is the circumference of the circle, in terms of \pi?", rf"{2 * radius}\pi", image
