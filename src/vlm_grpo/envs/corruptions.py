"""What can be wrong with a picture so that code has to repair it first: six kinds, each drawn from a `Random`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import Image, ImageEnhance, ImageFilter

from vlm_grpo.registry import Table

SMALLEST, FINEST = 2, 150  # pixels: a blur is a 150th of the shorter side to four of them, at least 2


def rotated(image: Image.Image, random: Random) -> Image.Image:
    """Turned by 90, 180 or 270 degrees."""
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(random.choice(turns))


def darkened(image: Image.Image, random: Random) -> Image.Image:
    """A tenth to a quarter as bright."""
    return ImageEnhance.Brightness(image).enhance(random.uniform(0.1, 0.25))


def overexposed(image: Image.Image, random: Random) -> Image.Image:
    """Pale: all values pushed into the upper tenth to quarter, none of them lost."""
    range_left = random.uniform(0.1, 0.25)
    return image.point(lambda value: round(255 - (255 - value) * range_left))


def blurred(image: Image.Image, random: Random) -> Image.Image:
    """Out of focus."""
    radius = max(SMALLEST, min(image.size) / FINEST * random.uniform(1, 4))
    return image.filter(ImageFilter.GaussianBlur(radius))


def noisy(image: Image.Image, random: Random) -> Image.Image:
    """A tenth to a third of the pixels black or white."""
    import numpy as np

    draw = np.random.default_rng(random.getrandbits(64))
    pixels = np.array(image)
    chosen = draw.random(pixels.shape[:2]) < random.uniform(0.1, 0.3)
    pixels[chosen] = draw.choice([0, 255], size=(int(chosen.sum()), 1))
    return Image.fromarray(pixels)


def miscropped(image: Image.Image, random: Random) -> Image.Image:
    """Cut far too widely: the picture is small, somewhere on an empty ground of its own size."""
    share = random.uniform(0.25, 0.4)
    width, height = (max(1, round(side * share)) for side in image.size)
    ground = Image.new("RGB", image.size, random.choice(("black", "white", "gray")))
    ground.paste(
        image.resize((width, height), Image.Resampling.LANCZOS),
        (random.randint(0, image.width - width), random.randint(0, image.height - height)),
    )
    return ground


DAMAGES: Table[Callable[[Image.Image, Random], Image.Image]] = Table(
    "damage",
    {
        "rotate": rotated,
        "dark": darkened,
        "overexposed": overexposed,
        "blur": blurred,
        "noise": noisy,
        "crop": miscropped,
    },
)
DRAWN = "drawn"  # one of DAMAGES by lot


def damaged(image: Image.Image, kind: str, key: str) -> Image.Image:
    """An RGB image with damage of a kind, or with kind "drawn" any; equal keys give equal damage.

    Raises:
        KeyError: an unknown kind.
    """
    random = Random(key)
    return DAMAGES[random.choice(list(DAMAGES)) if kind == DRAWN else kind](image, random)
