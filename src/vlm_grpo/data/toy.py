"""Real images that need no download: scikit-learn's handwritten digits as PNG files with jsonl files beside them.

1,797 scans of 8 x 8 pixels and 17 grey levels (UCI "Optical Recognition of Handwritten Digits"), enlarged.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

QUESTION = "Which digit is this?"


class DigitFiles(NamedTuple):
    """Where the data went. Paths inside the jsonl files are relative to `images`."""

    train: Path
    held_out: Path
    images: Path


def write_digits(folder: str | Path, *, train: int = 1500, side: int = 56, seed: int = 0) -> DigitFiles:
    """Write every digit as PNG, and train.jsonl and held_out.jsonl in the `conversations` form; returns their places.

    Args:
        folder: is made if need be; files of an earlier call are overwritten.
        train: how many digits are for training; all others are held out.
        side: width and height of the images in pixels.
        seed: of the split.

    Raises:
        ValueError: `train` leaves nothing to train on or nothing held out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    total = len(digits.images)
    if not 0 < train < total:
        raise ValueError(f"write_digits: train must be between 1 and {total - 1}, got {train}")
    where = DigitFiles(Path(folder) / "train.jsonl", Path(folder) / "held_out.jsonl", Path(folder) / "images")
    where.images.mkdir(parents=True, exist_ok=True)
    order = list(range(total))
    random.Random(seed).shuffle(order)
    for number in order:
        _save(digits.images[number], side, where.images / _name(number))
    _write_jsonl(where.train, [_row(number, digits.target[number]) for number in order[:train]])
    _write_jsonl(where.held_out, [_row(number, digits.target[number]) for number in order[train:]])
    return where


def _name(number: int) -> str:
    return f"digit_{number:04d}.png"


def _save(pixels: Any, side: int, path: Path) -> None:
    """Grey levels 0 to 16 become 0 to 255."""
    from PIL import Image

    Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((side, side), Image.Resampling.BICUBIC).save(path)


def _row(number: int, digit: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image": _name(number),
        "conversations": [{"from": "human", "value": f"<image>{QUESTION}"}, {"from": "gpt", "value": str(digit)}],
    }


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
