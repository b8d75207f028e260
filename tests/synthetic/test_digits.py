from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vlm_grpo.data import load_dataset
from vlm_grpo.synthetic import DigitFiles, write_digits


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DigitFiles:
    return write_digits(tmp_path_factory.mktemp("digits"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_write_digits_splits_all_digits_without_overlap(files: DigitFiles):
    train, held_out = ([row["id"] for row in lines(path)] for path in (files.train, files.held_out))
    assert (len(train), len(held_out)) == (1500, 297)
    assert sorted(train + held_out) == list(range(1797))


def test_write_digits_labels_and_draws_each_scan(files: DigitFiles):
    digits = load_digits()
    for row in lines(files.held_out)[:20]:
        assert row["conversations"][1] == {"from": "gpt", "value": str(digits.target[row["id"]])}
        image = Image.open(files.images / row["image"])
        assert (image.format, image.size) == ("PNG", (56, 56))
        # each 7 x 7 block of the enlarged image is as bright as the pixel that it came from, but for smoothing
        blocks = np.asarray(image, dtype=float).reshape(8, 7, 8, 7).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), digits.images[row["id"]].ravel())[0, 1] > 0.95
        assert blocks.max() > 200


def test_write_digits_is_read_by_load_dataset(files: DigitFiles):
    rows = load_dataset(str(files.held_out), image_folders=str(files.images))
    assert len(rows) == 297
    row, line = rows[5], lines(files.held_out)[5]
    assert row["answer"] == line["conversations"][1]["value"]
    assert row["prompt"][0]["content"][0]["type"] == "image"
    assert row["images"][0].source == str(files.images / line["image"])


def test_write_digits_repeats_itself_and_follows_the_seed(files: DigitFiles, tmp_path: Path):
    again = write_digits(tmp_path / "again")
    other = write_digits(tmp_path / "other", seed=1)
    assert again.train.read_text(encoding="utf-8") == files.train.read_text(encoding="utf-8")
    assert other.train.read_text(encoding="utf-8") != files.train.read_text(encoding="utf-8")


@pytest.mark.parametrize("train", [0, 1797])
def test_write_digits_refuses_an_empty_side(tmp_path: Path, train: int):
    with pytest.raises(ValueError, match=f"between 1 and 1796, got {train}"):
        write_digits(tmp_path, train=train)
