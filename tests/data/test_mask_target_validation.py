"""True masks and their shapes are looked at before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.files import turns, write_images, write_jsonl
from vlm_grpo.data import check_source, load_dataset
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.masks import encode_mask, write_rle

MASK = np.zeros((60, 80), bool)
MASK[10:40, 20:70] = True
GOLD = encode_mask(MASK)
GOOD = {"image": "0.png", "task": "seg", "mask": write_rle(MASK), "box_space": "thousand"}
RLE = 'the target mask as COCO RLE, {"size": [height, width], "counts": ...}'


def problems(folder: Path, **row: Any) -> list[tuple[str, str, str]]:
    row = {**GOOD, "conversations": turns("<image>the dog", row.pop("answer", GOLD)), **row}
    path = write_jsonl(folder / "a.jsonl", [{"conversations": turns("q", "a")}, row])
    found = check_source(path, image_folders=str(write_images(folder)))
    assert all(problem.where == f"{path}:2" and not problem.is_warning for problem in found)
    return [(problem.field, problem.found, problem.expected) for problem in found]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"answer": json.dumps(GOLD)},
        {"answer": f"<think>There.</think><answer>{json.dumps(GOLD)}</answer>"},
        {"mask": json.dumps(write_rle(MASK))},
        {"answer": encode_mask(MASK, terms=12), "terms": 12},
        {"answer": encode_mask(MASK, "polygon"), "terms": None, "mask": {"size": [60, 80], "counts": [0, 4800]}},
        {"answer": encode_mask(MASK, "fourier", extent=(80, 60)), "box_space": None},
        {"answer": encode_mask(MASK, extent=(28, 28)), "box_space": "resized"},
        {"answer": "a dog", "task": "default", "mask": "a dog.png", "terms": "few"},
    ],
)
def test_good_targets_pass(row: dict, tmp_path: Path):
    assert problems(tmp_path, **row) == []


@pytest.mark.parametrize(
    ("row", "field", "found", "expected"),
    [
        ({"mask": None}, "mask", "missing or null", RLE),
        ({"mask": "dog.png"}, "mask", "'dog.png'", f"{RLE}; must be JSON: "),
        ({"mask": {"size": [60, 80]}}, "mask", "{'size': [60, 80]}", f"{RLE}; must be "),
        ({"mask": {"size": [60, 80], "counts": [9]}}, "mask", "{'size': [60, 80], 'counts': [9]}", "must sum to 4800"),
        ({"mask": {"size": [60, 80], "counts": [4800]}}, "mask", "no pixel inside", RLE),
        ({"mask": {"size": [60, 80], "counts": [4000, 0, 800]}}, "mask", "no pixel inside", RLE),
        ({"terms": "8"}, "terms", "'8'", "an integer from 3 to 64"),
        ({"terms": 2}, "terms", "2", "an integer from 3 to 64"),
        ({"terms": 12}, "answer", "dict {'chebyshev': ", "a shape: 12 numbers in x and in y"),
        ({"answer": "a dog"}, "answer", "str 'a dog'", "an object with one key, chebyshev or fourier or polygon"),
        ({"answer": {"chebyshev": []}}, "answer", "dict {'chebyshev': []}", "a shape: a list of 1 to 4 shapes"),
        ({"answer": encode_mask(MASK, terms=9)}, "answer", "dict {'chebyshev': ", "a shape: 8 numbers in x and in y"),
        ({"box_space": None}, "answer", "{'chebyshev': ", "overlaps the mask, with boxes in the space 'original'"),
        ({"box_space": "thousands"}, "box_space", "'thousands'", "a coordinate space must be one of"),
    ],
)  # fmt: skip
def test_bad_targets_are_named(row: dict, field: str, found: str, expected: str, tmp_path: Path):
    ((name, shown, wanted),) = problems(tmp_path, **row)
    assert name == field and shown.startswith(found) and expected in wanted


def test_the_task_of_all_records_counts_too(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "q", "answer": "a"}])
    found = check_source(path, config=ReaderConfig(task="seg"))
    assert [problem.field for problem in found] == ["mask", "answer"]


def test_what_the_reward_needs_reaches_the_record(tmp_path: Path):
    row = {**GOOD, "conversations": turns("<image>the dog", GOLD), "terms": 8}
    (read,) = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row]), image_folders=str(write_images(tmp_path)))
    assert read["record"].extra == {"mask": GOOD["mask"], "terms": 8, "box_space": "thousand"}
    assert read["record"].answer == GOLD
    assert '{"chebyshev": [{"bbox_2d": [x1, y1, x2, y2], "x": [8 whole' in read["prompt"][0]["content"][-1]["text"]


@pytest.mark.parametrize("codec", ["chebyshev", "fourier", "polygon"])
def test_the_prompt_asks_for_the_codec_and_the_terms_of_the_answer(codec: str, tmp_path: Path):
    for answer in (encode_mask(MASK, codec, 12), json.dumps(encode_mask(MASK, codec, 12))):
        row = {**GOOD, "conversations": turns("<image>the dog", answer), "terms": 12}
        (read,) = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row]), image_folders=str(write_images(tmp_path)))
        asked = read["prompt"][0]["content"][-1]["text"]
        assert f'{{"{codec}": [{{"bbox_2d"' in asked and "12 " in asked
        assert sum(f'"{name}"' in asked for name in ("chebyshev", "fourier", "polygon")) == 1
