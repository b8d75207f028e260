"""Numbers on signs that are hard to read: rotated, dark, faded, blurred, noisy or tiny (`damaged`, for agent_code)."""

from __future__ import annotations

import base64
import io
from random import Random

from PIL import Image, ImageDraw

from vlm_grpo.envs.corruptions import CORRUPTIONS
from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.fonts import draw_text

PAPERS = ("#f4d35e", "#9bc1bc", "#e6ebe0", "#f2a07b")
INKS = ("#0d3b66", "#7a1f2b", "#1b4332")


def damaged_example(random: Random, number: int, side: int) -> Example:
    """Return a question about a corrupted sign; corruptions alternate, the column `original` is the clean image."""
    text = str(random.randint(100, 999))
    sign = _sign(random, text, side)
    kind = list(CORRUPTIONS)[number % len(CORRUPTIONS)]
    columns = {"original": _data_url(sign), "damage": kind, "environment": "agent_code"}
    question = "<image>The picture is damaged. Which number does the sign show?"
    return Example(question, text, (CORRUPTIONS[kind](sign, random),), columns=columns)


def _sign(random: Random, text: str, side: int) -> Image.Image:
    """Draw a board with a number, and a bar below it that shows which way is up."""
    image = Image.new("RGB", (side, side), random.choice(PAPERS))
    pen, ink = ImageDraw.Draw(image), random.choice(INKS)
    pen.rectangle((side * 0.06, side * 0.06, side * 0.94, side * 0.94), outline=ink, width=max(2, side // 40))
    pen.rectangle((side * 0.2, side * 0.78, side * 0.8, side * 0.84), fill=ink)
    draw_text(pen, (side / 2, side * 0.43), text, side * 0.38, fill=ink)
    return image


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
