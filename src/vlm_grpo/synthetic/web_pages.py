"""Designs of small web pages with their HTML (`visual_code`).

A page is a list of blocks at fixed positions, so that it can be drawn by the browser that also renders the completions
or, if no browser is installed, with Pillow, whose glyphs differ.
"""

from __future__ import annotations

from html import escape
from random import Random
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.fonts import draw_text

QUESTION = (
    "<image>Write a web page that looks like this {kind}: one HTML file with its CSS, without scripts and images. "
    "The picture is {side} pixels wide and high. Answer with the page in a ```html fence."
)
KINDS = ("interface design", "wireframe", "screenshot")
NAMES = ("Harbor", "Field Notes", "Tea House", "Night Train", "Paper Bird", "North Shop")
LINKS = ("Home", "News", "Prices", "About", "Contact", "Help")
HEADINGS = ("Welcome back", "Plan your week", "New this month", "Join the club", "Your orders")
SENTENCES = ("Open every day from nine", "Free delivery from 30 euros", "All seats are taken", "Two places are left")
CARDS = (
    ("Basic", "4 euros"),
    ("Family", "9 euros"),
    ("Team", "25 euros"),
    ("Seats", "12 left"),
    ("Orders", "3 open"),
)
BUTTONS = ("Sign in", "Buy now", "Send", "Read more", "Book a table")
FIELDS = ("Name", "Email", "City")
THEMES = (  # page, bar, card, button
    ("#ffffff", "#1d4e89", "#e8eef6", "#f26419"),
    ("#faf6ef", "#5b2a86", "#efe3f7", "#2a9d5c"),
    ("#f2f7f4", "#14532d", "#d9ecdf", "#b91c1c"),
    ("#fdfdfd", "#202124", "#eceff1", "#0b6bcb"),
)
WIRE = ("#ffffff", "#ffffff", "#ffffff", "#ffffff")
INK, LIGHT, LINE = "#222222", "#ffffff", "#777777"


class Block(NamedTuple):
    """A rectangle with text. Lengths are in pixels; `size` is the text height; "" means no fill or no edge."""

    left: int
    top: int
    width: int
    height: int
    text: str = ""
    size: int = 0
    ink: str = INK
    fill: str = ""
    edge: str = ""
    is_centered: bool = False


class WebPage(NamedTuple):
    """The background color, and blocks in drawing order."""

    color: str
    blocks: list[Block]


def page_example(random: Random, number: int, side: int) -> Example:
    """Return an image of a page; the answer is its HTML, which is also in the column `html`."""
    kind = KINDS[number % len(KINDS)]
    page = _page(random, side, kind)
    html = page_html(page)
    question = QUESTION.format(kind=kind, side=side)
    return Example(question, html, (page_image(page, side),), columns={"html": html})


def _page(random: Random, side: int, kind: str) -> WebPage:
    """Return a page with a link bar, a heading, cards or a form, and a button; a wireframe has only edges."""
    is_wire = kind == "wireframe"
    theme = WIRE if is_wire else random.choice(THEMES)
    edge = LINE if is_wire else ""
    body = _cards if random.random() < 0.5 else _form
    heading = [
        _text(side, 0.06, 0.19, 0.88, random.choice(HEADINGS), 0.075),
        _text(side, 0.06, 0.29, 0.88, random.choice(SENTENCES), 0.045),
    ]
    left = random.choice((0.06, 0.33, 0.6))
    look = {"ink": INK if is_wire else LIGHT, "fill": theme[3], "edge": edge, "is_centered": True}
    button = _text(side, left, 0.8, 0.34, random.choice(BUTTONS), 0.05, height=0.11, **look)
    blocks = [*_bar(random, side, theme[1], edge), *heading, *body(random, side, theme[2], edge), button]
    return WebPage(theme[0], blocks)


def _text(
    side: int, left: float, top: float, width: float, text: str, size: float, height: float = 0, **look: Any
) -> Block:
    """Return a block with lengths in fractions of the side; the default height is one line."""
    letters = max(9, round(size * side))
    high = round(height * side) or round(1.4 * letters)
    return Block(round(left * side), round(top * side), round(width * side), high, text, letters, **look)


def _bar(random: Random, side: int, fill: str, edge: str) -> list[Block]:
    ink = INK if edge else LIGHT
    blocks = [_text(side, 0, 0, 1, "", 0.05, height=0.13, fill=fill, edge=edge)]
    blocks.append(_text(side, 0.04, 0.03, 0.42, random.choice(NAMES), 0.055, height=0.07, ink=ink))
    for place, link in enumerate(random.sample(LINKS, 2)):
        blocks.append(_text(side, 0.52 + 0.24 * place, 0.035, 0.22, link, 0.042, height=0.06, ink=ink))
    return blocks


def _cards(random: Random, side: int, fill: str, edge: str) -> list[Block]:
    count = random.choice((2, 3))
    wide = 0.88 / count
    blocks = []
    for place, (name, price) in enumerate(random.sample(CARDS, count)):
        left = 0.06 + place * wide
        blocks.append(_text(side, left, 0.42, wide - 0.03, "", 0.05, height=0.3, fill=fill, edge=edge))
        blocks.append(_text(side, left + 0.02, 0.45, wide - 0.07, name, 0.05))
        blocks.append(_text(side, left + 0.02, 0.58, wide - 0.07, price, 0.042))
    return blocks


def _form(random: Random, side: int, fill: str, edge: str) -> list[Block]:
    blocks = []
    for place, name in enumerate(random.sample(FIELDS, 2)):
        top = 0.42 + 0.17 * place
        blocks.append(_text(side, 0.06, top, 0.22, name, 0.045, height=0.11))
        blocks.append(_text(side, 0.3, top, 0.64, "", 0.045, height=0.11, fill=fill, edge=edge or LINE))
    return blocks


def page_html(page: WebPage) -> str:
    """Return the page as HTML."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><title>Page</title><style>',
        f"body {{ margin: 0; background: {page.color}; font-family: Arial, sans-serif; }}",
        "div { position: absolute; box-sizing: border-box; white-space: nowrap; }",
        "</style></head>",
        "<body>",
        *(f'<div style="{_style(block)}">{escape(block.text)}</div>' for block in page.blocks),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _style(block: Block) -> str:
    lengths = zip(("left", "top", "width", "height"), block[:4], strict=True)
    parts = [f"{name}: {length}px" for name, length in lengths]
    if block.text:
        inner = block.height - (2 if block.edge else 0)
        parts += [f"font-size: {block.size}px", f"line-height: {inner}px", f"color: {block.ink}"]
    parts += [f"background: {block.fill}"] if block.fill else []
    parts += [f"border: 1px solid {block.edge}"] if block.edge else []
    parts += ["text-align: center"] if block.is_centered else []
    return "; ".join(parts)


def page_image(page: WebPage, side: int) -> Image.Image:
    """Return an image of the page rendered by a browser, or by Pillow if there is none."""
    from vlm_grpo.envs.browser.renderer import find_chromium, shared_renderer

    if find_chromium() is None:
        return draw_page(page, side)
    return shared_renderer().render(page_html(page), side, side).image()


def draw_page(page: WebPage, side: int) -> Image.Image:
    """Return an image of the page drawn with Pillow, `side` pixels wide and high."""
    image = Image.new("RGB", (side, side), page.color)
    pen = ImageDraw.Draw(image)
    for block in page.blocks:
        right, bottom = block.left + block.width, block.top + block.height
        corners = (block.left, block.top, right - 1, bottom - 1)
        if block.fill or block.edge:  # without both Pillow draws an edge
            pen.rectangle(corners, fill=block.fill or None, outline=block.edge or block.fill)
        middle = block.top + block.height / 2
        at, anchor = (((block.left + right) / 2, middle), "mm") if block.is_centered else ((block.left, middle), "lm")
        if block.text:
            draw_text(pen, at, block.text, block.size, fill=block.ink, anchor=anchor)
    return image
