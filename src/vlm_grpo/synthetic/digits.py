"""Real images without a download: scikit-learn's handwritten digits as PNG files with jsonl files.

1,797 scans of 8 x 8 pixels and 17 grey levels (UCI "Optical Recognition of Handwritten Digits"), enlarged.
"""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlm_grpo.records import NewRow
from vlm_grpo.synthetic.example import Example

QUESTION = "Which digit is this?"


class DigitFiles(NamedTuple):
    """Paths of the written data. Paths inside the jsonl files are relative to `images`."""

    train: Path
    held_out: Path
    images: Path


def write_digits(folder: str | Path, *, train: int = 1500, side: int = 56, seed: int = 0) -> DigitFiles:
    """Write every digit as PNG, and train.jsonl and held_out.jsonl in the conversations format; return their paths.

    Args:
        folder: output folder, created if needed; files of an earlier call are overwritten.
        train: number of training digits; all others are held out.
        side: width and height of the images in pixels.
        seed: seed of the split.

    Raises:
        ValueError: `train` leaves one of the splits empty.
    """
    digits = _digits()
    total = len(digits.images)
    if not 0 < train < total:
        raise ValueError(f"write_digits: train must be between 1 and {total - 1}, got {train}")
    where = DigitFiles(Path(folder) / "train.jsonl", Path(folder) / "held_out.jsonl", Path(folder) / "images")
    where.images.mkdir(parents=True, exist_ok=True)
    order = list(range(total))
    random.Random(seed).shuffle(order)
    for number in order:
        _picture(digits.images[number], side).save(where.images / _name(number))
    _write_jsonl(where.train, [_row(number, digits.target[number]) for number in order[:train]])
    _write_jsonl(where.held_out, [_row(number, digits.target[number]) for number in order[train:]])
    return where


def digit_example(random: random.Random, number: int, side: int) -> Example:
    """Return a question about a random digit."""
    digits = _digits()
    index = random.randrange(len(digits.images))
    return Example(f"<image>{QUESTION}", str(digits.target[index]), (_picture(digits.images[index], side),))


@lru_cache(maxsize=1)
def _digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()


def _name(number: int) -> str:
    return f"digit_{number:04d}.png"


def _picture(pixels: np.ndarray, side: int) -> Image.Image:
    """Return the image with grey levels 0 to 16 scaled to 0 to 255."""
    return Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((side, side), Image.Resampling.BICUBIC)


def _row(number: int, digit: Any) -> NewRow:
    return {
        "id": number,
        "image": _name(number),
        "conversations": [{"from": "human", "value": f"<image>{QUESTION}"}, {"from": "gpt", "value": str(digit)}],
    }


def _write_jsonl(path: Path, rows: list[NewRow]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
