"""True boxes outside their images are said with the column that tells their space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.files import png, turns, write_jsonl
from vlm_grpo.data import check_source
from vlm_grpo.data.errors import Problem
from vlm_grpo.data.parsing import ReaderConfig


def problems(folder: Path, rows: list[dict[str, Any]], size: tuple[int, int] = (120, 90)) -> list[Problem]:
    (folder / "a.png").write_bytes(png(size=size))
    full = [{"image": "a.png", "task": "rec", **row} for row in rows]
    return check_source(write_jsonl(folder / "a.jsonl", full), image_folders=str(folder), config=ReaderConfig())


def row(box: object, **columns: Any) -> dict[str, Any]:
    return {"conversations": turns("<image>q", box), **columns}


@pytest.mark.parametrize(
    ("box", "hint"),
    [
        ([0.1, 0.2, 0.5, 0.7], '; for coordinates from 0 to 1 add "box_space": "unit"'),
        ([100, 200, 900, 950], '; for coordinates from 0 to 1000 add "box_space": "thousand"'),
        ({"bbox_2d": [1, 2, 130, 50]}, '; for coordinates from 0 to 1000 add "box_space": "thousand"'),
        ([1, 2, 1300, 50], ""),
    ],
)
def test_a_box_outside_its_image_is_refused(box: object, hint: str, tmp_path: Path):
    (problem,) = problems(tmp_path, [row([1, 2, 100, 80]), row(box)])
    assert (problem.where[-2:], problem.field, problem.is_warning) == (":2", "answer", False)
    assert problem.expected == f"a box in pixels of its image, 120 x 90{hint}"


@pytest.mark.parametrize(
    ("box", "columns"),
    [
        ([0.1, 0.2, 0.5, 0.7], {"box_space": "unit"}),
        ([100, 200, 900, 950], {"box_space": "thousand"}),
        ([1, 2, 122, 91], {}),  # drawn a little over the edge
        ([0, 0, 1, 2], {}),
        ([100, 200, 900, 950], {"task": "counting"}),
    ],
)
def test_boxes_that_may_be_meant(box: object, columns: dict[str, Any], tmp_path: Path):
    assert problems(tmp_path, [row(box, **columns)]) == []


def test_lists_of_boxes_are_looked_at_too(tmp_path: Path):
    inside, outside = {"bbox_2d": [1, 2, 50, 60], "label": "a"}, {"bbox_2d": [1, 2, 500, 600], "label": "a"}
    thousand = {"Position": [1, 2, 500, 600], "Confidence": 1}
    rows = [row([inside, outside], task="ovd"), row([inside, thousand], task="ovd"), row([inside], task="ovd")]
    assert [problem.where[-2:] for problem in problems(tmp_path, rows)] == [":1"]


def test_the_second_image_is_meant_where_the_row_says_so(tmp_path: Path):
    (tmp_path / "b.png").write_bytes(png(size=(300, 300)))
    two = {"image": ["a.png", "b.png"], "conversations": turns("<image><image>q", [1, 1, 250, 250])}
    assert [problem.where[-2:] for problem in problems(tmp_path, [two, {**two, "box_image": 1}])] == [":1"]


def test_a_file_that_looks_as_if_it_counted_to_a_thousand_is_a_warning(tmp_path: Path):
    boxes = [row([10 * n, 10 * n, 900, 1000]) for n in range(20)]
    (problem,) = problems(tmp_path, boxes, size=(1100, 1050))
    assert problem.is_warning and "none of 20 boxes on images of over 1000 pixels exceeds 1000" in problem.found
    assert '"box_space": "thousand"' in problem.expected
    assert problems(tmp_path, [*boxes, row([1, 1, 1090, 1040])], size=(1100, 1050)) == []
    assert problems(tmp_path, boxes[:19], size=(1100, 1050)) == []
