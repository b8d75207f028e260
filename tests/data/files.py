"""Small data sets on disk for the tests of this folder and of the commands."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "lime", "blue")


def turns(question: str, answer: Any) -> list[dict[str, Any]]:
    """A conversation of one question and its answer."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def png(color: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    """A PNG file of one color."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path) -> Path:
    """images/0.png, 1.png and 2.png, each of another color; returns the folder."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number, color in enumerate(COLORS):
        (images / f"{number}.png").write_bytes(png(color))
    return images


def write_jsonl(path: Path, rows: list[Any]) -> str:
    """One line per row; text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)
