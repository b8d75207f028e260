"""Images to choose from, for the environment `pick_image`: colored shapes, each named by its color."""

from __future__ import annotations

from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 48, 49),
    "green": (39, 160, 68),
    "blue": (45, 92, 220),
    "yellow": (243, 212, 40),
    "black": (24, 24, 28),
    "white": (250, 250, 250),
    "orange": (246, 140, 24),
    "purple": (138, 46, 168),
}
BACKGROUND = (128, 128, 128)
SHIFT = 12  # maximum difference of a color's levels between images


def write_candidates(folder: str | Path, *, rows: int = 64, seed: int = 0, side: int = 56) -> list[Path]:
    """Write red_1.png, green_1.png, ... and return their paths; the files are deterministic for the arguments.

    Args:
        folder: output folder, created if needed.
        rows: number of images, at least one of each color.
        seed: random seed.
        side: width and height in pixels.

    Raises:
        ValueError: there are too few images.
    """
    if rows < len(COLORS):
        raise ValueError(f"--rows must be at least {len(COLORS)}, one for each color, got {rows}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(seed)
    paths = []
    for number in range(rows):
        name = list(COLORS)[number % len(COLORS)]
        paths.append(folder / f"{name}_{number // len(COLORS) + 1}.png")
        _draw(random, COLORS[name], side).save(paths[-1])
    return paths


def _draw(random: Random, color: tuple[int, ...], side: int) -> Image.Image:
    """Return an image of a large square, disc or diamond."""
    image = Image.new("RGB", (side, side), BACKGROUND)
    near, far = random.randint(0, side // 7), side - 1 - random.randint(0, side // 7)
    middle = (near + far) // 2
    shade = tuple(min(255, max(0, level + random.randint(-SHIFT, SHIFT))) for level in color)
    pen, kind = ImageDraw.Draw(image), random.randrange(3)
    if kind == 0:
        pen.rectangle([near, near, far, far], fill=shade)
    elif kind == 1:
        pen.ellipse([near, near, far, far], fill=shade)
    else:
        pen.polygon([(middle, near), (far, middle), (middle, far), (near, middle)], fill=shade)
    return image
