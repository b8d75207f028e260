"""A small COCO on disk: two photographs and drawn discs with masks, as polygons and in both kinds of RLE."""

from __future__ import annotations

import importlib.util
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco
from sklearn.datasets import load_sample_image

from tests.data_tools.files import ROOT

HEIGHT, WIDTH = 107, 160
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5


def photo(name: str) -> np.ndarray:
    """(107, 160, 3) of uint8."""
    return load_sample_image(name)[::4, ::4]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return (COLUMNS - x) ** 2 + (ROWS - y) ** 2 <= radius**2


def blossom() -> np.ndarray:
    """The flower in the photograph: its red part is the one that is bright and large."""
    return photo("flower.jpg")[:, :, 0] > 150


def polygon(x: float, y: float, radius: float, corners: int = 24) -> list[float]:
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).round(2).ravel().tolist()


def text_rle(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def list_rle(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [0]])
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *np.flatnonzero(np.diff(flat)), mask.size]).tolist()}


def annotation(number: int, image: int, category: int, segmentation: Any, box: list[float], **more: Any) -> dict:
    known = {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "bbox": box}
    return {**known, "iscrowd": 0, **more}


def content() -> dict[str, Any]:
    """Images 1 to 4; a flower, three cups (one in two pieces), a crowd, a speck, four birds."""
    birds = [annotation(20 + n, 3, 4, [polygon(20 + 40 * n, 30, 14)], [6 + 40 * n, 16, 28, 28]) for n in range(4)]
    return {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(1, 5)
        ],
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(("flower", "cup", "person", "bird"), 1)
        ],
        "annotations": [
            annotation(10, 1, 1, text_rle(blossom()), [20, 0, 120, 106]),
            annotation(11, 2, 2, [polygon(110, 60, 30)], [80, 30, 60, 60]),
            annotation(12, 2, 2, [polygon(25, 30, 20), polygon(25, 80, 20)], [5, 10, 40, 90]),
            annotation(13, 2, 3, list_rle(disc(50, 50, 40)), [10, 10, 80, 80], iscrowd=1),
            annotation(14, 3, 2, list_rle(disc(60, 70, 30)), [30, 40, 60, 60]),
            annotation(15, 4, 3, [polygon(80, 50, 4)], [76, 46, 8, 8]),
            annotation(16, 4, 1, [polygon(80, 50, 40)], [40, 10, 80, 80]),
            *birds,
        ],
    }


def write_coco(folder: Path, what: dict[str, Any] | None = None) -> Path:
    """annotations/instances_val2017.json and val2017/; returns the folder."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(what or content()))
    images = folder / "val2017"
    images.mkdir()
    for number, name in enumerate(("flower.jpg", "china.jpg", "china.jpg", "flower.jpg"), 1):
        Image.fromarray(photo(name)).save(images / f"{number:012d}.jpg")
    return folder


class Done(NamedTuple):
    """What a tool left behind."""

    returncode: int
    stdout: str
    stderr: str


def tool(name: str) -> ModuleType:
    """data_tools/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"data_tools_{name}", ROOT / "data_tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, *words: object) -> Done:
    """A tool's `main` in this process, which saves the time of importing everything again."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = module.main([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code
    return Done(status, out.getvalue(), err.getvalue())
