"""Text in images: the font that is included in Pillow, in any size."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageDraw, ImageFont

INK = (35, 35, 40)


Color = str | tuple[int, ...]


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font, `size` pixels high."""
    return ImageFont.load_default(max(6, size))


def draw_text(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: float, fill: Color = INK, anchor: str = "mm"
) -> None:
    """Draw text at a point; `anchor` as in Pillow, by default the middle of the text."""
    pen.text(at, text, font=font(round(size)), fill=fill, anchor=anchor)


def draw_times_sign(pen: ImageDraw.ImageDraw, at: tuple[float, float], size: float, fill: Color = INK) -> None:
    """Draw a times sign around a point; the font has none."""
    (x, y), half = at, size / 2
    for lean in (-half, half):
        pen.line([(x - half, y - lean), (x + half, y + lean)], fill=fill, width=max(1, round(size / 8)))
