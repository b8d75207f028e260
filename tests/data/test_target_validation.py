"""True boxes, and the columns that say where they are, are looked at before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.files import turns, write_images, write_jsonl
from vlm_grpo.data import DataError, check_source, load_dataset

BOX = {"bbox_2d": [1, 2, 5, 6]}
ASKED = {"image": "0.png", "task": "rec"}


def problems(folder: Path, **row: Any) -> list[tuple[str, str, str]]:
    row = {**ASKED, "conversations": turns("<image>Where?", row.pop("answer", BOX)), **row}
    path = write_jsonl(folder / "a.jsonl", [{"conversations": turns("q", "a")}, row])
    found = check_source(path, image_folders=str(write_images(folder)))
    assert all(problem.where == f"{path}:2" and not problem.is_warning for problem in found)
    return [(problem.field, problem.found, problem.expected) for problem in found]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"answer": [1, 2, 5, 6]},
        {"answer": "[1, 2, 5, 6]"},
        {"answer": "<think>There.</think><answer>(1,2),(5,6)</answer>"},
        {"answer": {"bbox_2d": [0, 0, 1000, 1000]}, "box_space": "thousand"},
        {"answer": [0.0, 0.25, 1.0, 0.5], "box_space": "unit"},
        {"answer": [0, 0, 5000, 9], "box_space": "resized", "box_image": 0},
        {"box_space": None, "box_image": None},
        {"answer": "a dog", "task": "default"},
        {"answer": [5, 5, 5, 5], "task": "default", "box_space": "original"},
    ],
)
def test_good_targets_pass(row: dict, tmp_path: Path):
    assert problems(tmp_path, **row) == []


SPACES = "a coordinate space must be one of original, resized, thousand, unit"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"box_space": "thousands"}, [("box_space", "'thousands'", SPACES)]),
        ({"box_space": ["unit"]}, [("box_space", "['unit']", SPACES)]),
        ({"box_space": "pixels", "task": "default"}, [("box_space", "'pixels'", SPACES)]),
        ({"box_image": 1}, [("box_image", "1", "the 0-based index of one of the row's 1 images")]),
        ({"box_image": "0"}, [("box_image", "'0'", "the 0-based index of one of the row's 1 images")]),
        ({"answer": "a dog"}, [("answer", "str 'a dog'", '{"bbox_2d": [x1, y1, x2, y2]}, one box')]),
        ({"answer": [1, 2, 5]}, [("answer", "list [1, 2, 5]", '{"bbox_2d": [x1, y1, x2, y2]}, one box')]),
        (
            {"answer": [[1, 2, 5, 6], [1, 2, 7, 8]]},
            [("answer", "list [[1, 2, 5, 6], [1, 2, 7, 8]]", '{"bbox_2d": [x1, y1, x2, y2]}, one box')],
        ),
        ({"answer": [5, 2, 1, 6]}, [("answer", "[5, 2, 1, 6]", "x1 < x2 and y1 < y2, both above 0")]),
        (
            {"answer": [1, 2, 5, 6], "box_space": "unit"},
            [("answer", "[1, 2, 5, 6]", "coordinates from 0 to 1 in the space 'unit'")],
        ),
        (
            {"answer": [1, 2, 5, 1001], "box_space": "thousand"},
            [("answer", "[1, 2, 5, 1001]", "coordinates from 0 to 1000 in the space 'thousand'")],
        ),
    ],
)
def test_bad_targets_are_named(row: dict, expected: list, tmp_path: Path):
    assert problems(tmp_path, **row) == expected


def test_a_space_that_is_null_is_the_original_one(tmp_path: Path):
    row = {**ASKED, "conversations": turns("<image>Where?", BOX), "box_space": None, "box_image": None, "more": None}
    (read,) = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row]), image_folders=str(write_images(tmp_path)))
    assert dict(read["record"].extra) == {"more": None}


def test_the_task_of_all_records_counts_too(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "q", "answer": "a"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1 +answer +str 'a' .*one box"):
        load_dataset(path, task="rec")
