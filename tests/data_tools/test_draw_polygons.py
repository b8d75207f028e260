from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.files import turns, write_jsonl
from tests.data_tools.coco_files import call, tool
from vlm_grpo.masks import encode_mask, write_rle

TOOL = tool("draw_polygons")
MASK = np.zeros((60, 80), bool)
MASK[20:50, 20:60] = True
ROW = {"id": "a/1", "image": "0.png", "task": "seg", "mask": write_rle(MASK), "box_space": "thousand"}
SQUARE = {"polygon": [{"bbox_2d": [250, 333, 750, 833], "points": [[-50, -50], [50, -50], [50, 50], [-50, 50]]}]}


def draw(folder: Path, rows: list[dict], *words: object) -> Any:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (160, 120), "white").save(folder / "images" / "0.png")
    path = write_jsonl(folder / "a.jsonl", rows)
    where = ("--data_file_paths", path, "--image_folders", folder / "images", "--output_dir", folder / "out")
    return call(TOOL, *where, *words)


def row(answer: Any, **more: Any) -> dict:
    return {**ROW, "conversations": turns("<image>the square", answer), **more}


def test_mask_outline_and_box_are_where_they_belong(tmp_path: Path):
    """An image of twice the mask's size: the mask from (40, 40) to (120, 100), the answer in the middle half of it."""
    done = draw(tmp_path, [row(SQUARE)])
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "00000_a_1.png"
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape == (154, 320, 3)
    assert pixels[10, 10].tolist() == [255, 255, 255]
    blue = (pixels[:120, :160, 2] - pixels[:120, :160, 0] > 60).nonzero()
    assert (blue[0].min(), blue[0].max(), blue[1].min(), blue[1].max()) == (41, 99, 41, 119)  # the box covers its edge
    red = (pixels[:120, :160] == [255, 40, 40]).all(axis=2).nonzero()
    assert (red[0].min(), red[0].max(), red[1].min(), red[1].max()) == (54, 83, 60, 99)
    yellow = (pixels[:120, :160] == [255, 220, 0]).all(axis=2).nonzero()
    assert (yellow[0].min(), yellow[0].max(), yellow[1].min(), yellow[1].max()) == (40, 100, 40, 120)
    assert (pixels[120:] < 128).any()  # the caption


def test_the_words_of_vlm_r1(tmp_path: Path):
    draw(tmp_path, [row(SQUARE)])
    done = call(TOOL, tmp_path / "a.jsonl", "--image-root", tmp_path / "images", "--output", tmp_path / "vis")
    assert (done.returncode, done.stderr) == (0, "")
    (mine,), (theirs,) = (tmp_path / "out").iterdir(), (tmp_path / "vis").iterdir()
    assert mine.read_bytes() == theirs.read_bytes()
    done = call(TOOL, tmp_path / "a.jsonl", "--data_file_paths", tmp_path / "a.jsonl", "--output", tmp_path / "vis")
    assert done.returncode == 2 and "pass the jsonl files once" in done.stderr


def test_limit_and_other_tasks(tmp_path: Path):
    other = {"id": 2, "image": "0.png", "conversations": turns("<image>Which?", "red")}
    rows = [other, row(encode_mask(MASK)), row(encode_mask(MASK), id=7), row(encode_mask(MASK), id=8)]
    done = draw(tmp_path, rows, "--limit", 2)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out'}: 2 pictures\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00001_a_1.png", "00002_7.png"]
    done = draw(tmp_path, [other])
    assert done.returncode == 1 and "has the task seg and an image" in done.stderr


@pytest.mark.parametrize("answer", ["a dog", {"chebyshev": []}])
def test_a_row_that_cannot_be_drawn_is_named(answer: object, tmp_path: Path):
    done = draw(tmp_path, [row(SQUARE), row(answer)])
    assert done.returncode == 1 and "a.jsonl:2" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_limit_below_one_is_refused(tmp_path: Path):
    done = draw(tmp_path, [row(SQUARE)], "--limit", 0)
    assert done.returncode == 2 and "--limit must be at least 1, got 0" in done.stderr
