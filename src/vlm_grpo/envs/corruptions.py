"""Six image corruptions for code to undo, each parameterized by a `Random`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import Image, ImageEnhance, ImageFilter

from vlm_grpo.registry import Registry

SMALLEST, FINEST = 2, 150  # the blur is 1/150 to 4/150 of the shorter side, at least 2 pixels


def rotate(image: Image.Image, random: Random) -> Image.Image:
    """Rotate by 90, 180 or 270 degrees."""
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(random.choice(turns))


def darken(image: Image.Image, random: Random) -> Image.Image:
    """Darken to a tenth to a quarter of the brightness."""
    return ImageEnhance.Brightness(image).enhance(random.uniform(0.1, 0.25))


def overexpose(image: Image.Image, random: Random) -> Image.Image:
    """Compress all values into the upper tenth to quarter of the range, without clipping."""
    range_left = random.uniform(0.1, 0.25)
    return image.point(lambda value: round(255 - (255 - value) * range_left))


def blur(image: Image.Image, random: Random) -> Image.Image:
    """Blur with a Gaussian."""
    radius = max(SMALLEST, min(image.size) / FINEST * random.uniform(1, 4))
    return image.filter(ImageFilter.GaussianBlur(radius))


def add_noise(image: Image.Image, random: Random) -> Image.Image:
    """Set a tenth to a third of the pixels to black or white."""
    import numpy as np

    draw = np.random.default_rng(random.getrandbits(64))
    pixels = np.array(image)
    noise_mask = draw.random(pixels.shape[:2]) < random.uniform(0.1, 0.3)
    pixels[noise_mask] = draw.choice([0, 255], size=(int(noise_mask.sum()), 1))
    return Image.fromarray(pixels)


def miscrop(image: Image.Image, random: Random) -> Image.Image:
    """Shrink the image and paste it at a random position on an empty background of the original size."""
    share = random.uniform(0.25, 0.4)
    width, height = (max(1, round(side * share)) for side in image.size)
    ground = Image.new("RGB", image.size, random.choice(("black", "white", "gray")))
    ground.paste(
        image.resize((width, height), Image.Resampling.LANCZOS),
        (random.randint(0, image.width - width), random.randint(0, image.height - height)),
    )
    return ground


CORRUPTIONS: Registry[Callable[[Image.Image, Random], Image.Image]] = Registry(
    "damage",
    {
        "rotate": rotate,
        "dark": darken,
        "overexposed": overexpose,
        "blur": blur,
        "noise": add_noise,
        "crop": miscrop,
    },
)
RANDOM = "drawn"  # a random one of CORRUPTIONS


def corrupt(image: Image.Image, kind: str, key: str) -> Image.Image:
    """Return a corrupted RGB image; "drawn" selects a random corruption. Deterministic for a key.

    Raises:
        KeyError: the kind is unknown.
    """
    random = Random(key)
    return CORRUPTIONS[random.choice(list(CORRUPTIONS)) if kind == RANDOM else kind](image, random)
