"""Rows of other systems: what they say in this package's form, and that nothing is lost on the way there and back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.files import turns, write_images
from tests.data_tools.files import read_jsonl
from tests.data_tools.foreign import JSONL_ROWS, LONG, SWIFT, write
from vlm_grpo.cli.check import main as check
from vlm_grpo.data.converters import FORMATS, convert_between, convert_files
from vlm_grpo.data.converters.roundtrip import ROUNDTRIP, UnsupportedField, convert_row
from vlm_grpo.data.errors import DataError


@pytest.mark.parametrize("file_format", ["parquet", "swift", "llava"])
def test_jsonl_to_another_form_and_back_is_equal(tmp_path: Path, file_format: str):
    folder = str(write_images(tmp_path))
    rows = JSONL_ROWS if file_format == "parquet" else [*JSONL_ROWS, LONG]
    path, there, back = write(tmp_path / "a.jsonl", rows, "jsonl"), tmp_path / "there", tmp_path / "back.jsonl"
    assert convert_files([path], there, "jsonl", file_format, folder) == len(rows)
    assert convert_files([there], back, file_format, "jsonl", folder) == len(rows)
    assert read_jsonl(back) == rows
    assert [type(row["conversations"][-1]["value"]) for row in read_jsonl(back)][:3] == [str, int, str]


@pytest.mark.parametrize("file_format", ["swift", "llava"])
def test_another_form_to_jsonl_and_back_is_equal(tmp_path: Path, file_format: str):
    folder = str(write_images(tmp_path))
    rows = (
        SWIFT
        if file_format == "swift"
        else [{"id": "x", "image": "0.png", "conversations": turns("<image>\nq", "[1, 2]")}]
    )
    path, there, back = write(tmp_path / "a", rows, file_format), tmp_path / "there.jsonl", tmp_path / "back"
    assert convert_files([path], there, file_format, "jsonl", folder) == len(rows)
    assert check(["--data_file_paths", str(there), "--image_folders", folder]) == 0
    assert convert_files([there], back, "jsonl", file_format, folder) == len(rows)
    assert [row for _, row in FORMATS[file_format].read(back, folder)] == rows


def test_grounding_of_swift_becomes_boxes(tmp_path: Path):
    convert_files([write(tmp_path / "a", SWIFT[2:], "swift")], tmp_path / "b", "swift", "jsonl", "")
    one, several = read_jsonl(tmp_path / "b")
    assert one["conversations"][1:] == turns("<image>Find the sheep", {"bbox_2d": [90.9, 160.8, 135, 212.8]})
    assert (one["image"], one["box_space"]) == ("1.png", "original")
    assert several["conversations"][1]["value"] == [
        {"bbox_2d": [0, 0, 0.5, 1], "label": "a"},
        {"bbox_2d": [0.5, 0, 1, 1], "label": "b"},
    ]
    assert (several["box_space"], several["box_image"]) == ("unit", 1)


def test_boxes_become_grounding_of_swift(tmp_path: Path):
    folder = write_images(tmp_path)
    convert_files(
        [write(tmp_path / "a", [JSONL_ROWS[3], LONG], "jsonl")], tmp_path / "b", "jsonl", "swift", str(folder)
    )
    one, several = read_jsonl(tmp_path / "b")
    assert one["messages"][1] == {"role": "assistant", "content": '{"bbox_2d": <bbox>}'}
    assert one["objects"] == {"ref": [], "bbox": [[1, 2, 3.5, 4]], "bbox_type": "real"}
    assert one["images"] == [str(folder / "2.png")]
    assert (
        several["messages"][-1]["content"]
        == '[{"bbox_2d": <bbox>, "label": "cup"}, {"bbox_2d": <bbox>, "label": "cup"}]'
    )
    assert several["objects"]["bbox_type"] == "norm1000"


def test_an_edited_row_is_not_undone():
    """What is kept for the way back belongs to the row as it was."""
    swift = FORMATS["swift"]
    there, back = (lambda row: swift.to_jsonl(row, "")), (lambda row: swift.from_jsonl(row, ""))
    ours = convert_row(SWIFT[2], "swift", there, back, "jsonl")
    assert ours[ROUNDTRIP]["set"]["messages"] == SWIFT[2]["messages"]
    ours["conversations"][-1]["value"] = {"bbox_2d": [1, 1, 2, 2]}
    edited = convert_row(ours, "jsonl", back, there, "swift")
    assert edited["objects"]["bbox"] == [[1, 1, 2, 2]]


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
ANSWER = VALUE | st.fixed_dictionaries({"bbox_2d": st.lists(st.integers(0, 9), min_size=4, max_size=4)})
ROW = st.builds(
    lambda question, answer, system, images, extra: {
        **extra,
        **({} if images is None else {"image": images}),
        "conversations": [*system, *turns(question, answer)],
    },
    TEXT,
    ANSWER,
    st.sampled_from([[], [{"from": "system", "value": "s"}]]),
    st.none() | st.just([]) | st.just("a.png") | st.lists(st.sampled_from(["a.png", "https://x/b.png"]), max_size=2),
    st.dictionaries(
        TEXT | st.sampled_from(["answer", "messages", "box_space", "images", ROUNDTRIP]), VALUE, max_size=3
    ),
)


@pytest.mark.parametrize("file_format", ["parquet", "swift", "llava"])
@given(row=ROW)
def test_any_row_comes_back_equal_or_is_refused(file_format: str, row: dict[str, Any]):
    def there(one: dict[str, Any]) -> dict[str, Any]:
        return FORMATS[file_format].from_jsonl(one, "")

    def back(one: dict[str, Any]) -> dict[str, Any]:
        return FORMATS[file_format].to_jsonl(one, "")

    try:
        converted = convert_row(row, "jsonl", there, back, file_format)
    except UnsupportedField:
        return
    again = convert_row(json.loads(json.dumps(converted)), file_format, back, there, "jsonl")
    assert json.dumps(again, sort_keys=True) == json.dumps(row, sort_keys=True)


MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.just("<bbox>") | TEXT})
GARBAGE = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE | VALUE, max_size=3) | VALUE,
        "conversations": st.lists(st.fixed_dictionaries({"from": VALUE, "value": VALUE}), max_size=2) | VALUE,
        "images": st.lists(TEXT) | VALUE,
        "objects": st.dictionaries(st.sampled_from(["ref", "bbox", "bbox_type", "image_id"]), VALUE) | VALUE,
        "problem": VALUE,
        "answer": VALUE,
    },
)


@pytest.mark.parametrize("file_format", ["swift", "llava", "jsonl"])
@given(row=GARBAGE)
def test_any_other_row_is_refused_or_converted(file_format: str, row: dict[str, Any]):
    """No exception but the one that names the row."""
    for target in {"swift", "llava", "parquet", "jsonl"} - {file_format}:
        with contextlib.suppress(UnsupportedField):
            convert_between(row, file_format, target, "")


@pytest.mark.parametrize(
    ("source", "target", "row", "said"),
    [
        ("jsonl", "parquet", LONG, "one question and its answer"),
        ("jsonl", "parquet", {**JSONL_ROWS[0], "image": "9.png"}, "9.png"),
        ("jsonl", "parquet", {**JSONL_ROWS[0], "answer": "x"}, "no column of this name"),
        ("jsonl", "parquet", {**JSONL_ROWS[0], "image": {"bytes": "x"}}, "a path or URL"),
        ("jsonl", "swift", {**JSONL_ROWS[3], "box_space": "resized"}, "one of original"),
        ("jsonl", "swift", {"question": "q", "answer": "a"}, "a list of turns"),
        ("jsonl", "llava", {"conversations": [{"from": "robot", "value": "q"}]}, "one of human"),
        ("jsonl", "llava", {"conversations": [{"from": "human", "value": 3}]}, "text"),
        ("jsonl", "llava", '{"x": NaN, "conversations": [{"from": "human", "value": "q"}]}', "Out of range float"),
        ("swift", "jsonl", {"messages": [{"role": "tool_call", "content": "{}"}]}, "one of system"),
        ("swift", "jsonl", {"messages": [{"role": "user", "content": ["q"]}]}, "text"),
        ("swift", "jsonl", {**SWIFT[0], "images": [{"bytes": "x"}]}, "paths or URLs"),
        ("swift", "jsonl", {**SWIFT[0], "image": "x"}, "no column of this name"),
        ("swift", "jsonl", {**SWIFT[2], "objects": {"ref": [], "bbox": [[1, 2, 3, 4]]}}, "as many as"),
        ("swift", "jsonl", {**SWIFT[2], "objects": {"ref": ["sheep"], "bbox": [[1, 2]]}}, "points have no counterpart"),
        ("swift", "jsonl", {**SWIFT[2], "objects": {**SWIFT[2]["objects"], "bbox_type": "pixel"}}, "one of real"),
        ("swift", "jsonl", {**SWIFT[3], "objects": {**SWIFT[3]["objects"], "image_id": [0, 1]}}, "boxes on one image"),
        (
            "swift",
            "jsonl",
            {
                "messages": [{"role": "user", "content": "What is at <bbox>?"}, {"role": "assistant", "content": "x"}],
                "objects": {"bbox": [[1, 2, 3, 4]]},
            },
            "boxes in the last answer only",
        ),
        (
            "swift",
            "jsonl",
            {
                "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "click(<bbox>)"}],
                "objects": {"bbox": [[1, 2, 3, 4]]},
            },
            "JSON around them",
        ),
    ],
)
def test_what_cannot_be_said_names_the_row(tmp_path: Path, source: str, target: str, row: Any, said: str):
    write_images(tmp_path)
    good = {"jsonl": JSONL_ROWS[0], "swift": SWIFT[0]}[source]
    path = write(tmp_path / "a.jsonl", [good, row, "{"], "jsonl")
    folder = str(tmp_path / "images")
    with pytest.raises(DataError) as caught:
        convert_files([path], tmp_path / "out", source, target, folder)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:2", f"{path}:3"]
    assert said in str(caught.value.problems)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "images"]
