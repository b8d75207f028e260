"""Whatever stands in a file or a completion: a value, or a problem that names file and line; never another exception.

`--hypothesis-profile extended` tries 10,000 examples of each instead of 300.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_grpo.answer_parser import (
    completion_text,
    extract_answer,
    extract_boxed,
    extract_json,
    parse_answer,
    parse_steps,
)
from vlm_grpo.boxes import Box, boxes_in, convert, giou, iou, only_box
from vlm_grpo.data.dataset import RowTransform
from vlm_grpo.data.errors import DataError
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.readers import parse_source_row
from vlm_grpo.data.readers.text_files import JsonlSource
from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import predicted_answer
from vlm_grpo.tasks import TASKS

PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "[", "]", "(", ")", ",", ":", '"', "'", "\\",
     "```json", "```", '"answer"', '"reasoning_steps"', '"bbox_2d"', "<|box_start|>", "1e999", "-0", "NaN", "null",
     "9" * 400, "[[" * 200, "12.5", "<image>", "<video>", "\n", " ", "\u2028", "\ud800", "é", "。", "1,234"]
)  # fmt: skip
TEXT = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=20).map("".join))
NUMBERS = st.one_of(st.integers(-(10**40), 10**40), st.floats(allow_nan=True, allow_infinity=True))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    LEAVES, lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(TEXT, v, max_size=4)), max_leaves=8
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "system", "user", "assistant", "", None])}, optional={"value": VALUES}
    ),
    max_size=4,
)
KEYS = ["id", "image", "images", "video", "videos", "question", "problem", "answer", "solution", "task", "options",
        "choices", "reference_steps", "accu_reward_method", "box_space", "weights", "system"]  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)
WITH_TURNS = st.tuples(ROWS, st.one_of(TURNS, VALUES)).map(lambda pair: {**pair[0], "conversations": pair[1]})
LINES = st.one_of(
    st.binary(max_size=80),
    st.one_of(ROWS, WITH_TURNS, VALUES).map(lambda value: json.dumps(value).encode()),
    st.tuples(WITH_TURNS, st.integers(0, 60), st.binary(max_size=3)).map(
        lambda parts: (line := json.dumps(parts[0]).encode())[: parts[1]] + parts[2] + line[parts[1] :]
    ),
)
COORDINATES = st.lists(st.sampled_from(["1", "-3", "2.5", "700", "9" * 400, "0", "x"]), min_size=4, max_size=5)
BOX_TEXT = st.tuples(
    COORDINATES, st.sampled_from(["[{}]", '{{"bbox_2d": [{}]}}', "({}), ({})", "```json\n[{}]```"])
).map(lambda parts: parts[1].format(", ".join(parts[0]), ", ".join(parts[0][:2])))
SIZES = st.tuples(st.floats(1, 1e5), st.floats(1, 1e5))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "data.jsonl"


@given(lines=st.lists(LINES, min_size=1, max_size=3), task=st.sampled_from(list(TASKS)))
def test_a_line_is_a_row_or_a_problem_with_its_place(lines: list[bytes], task: str, file: Path):
    file.write_bytes(b"\n".join(lines))
    try:
        source = JsonlSource(file, ReaderConfig(task=task))
    except DataError as error:
        assert all(problem.where.startswith(str(file)) for problem in error.problems)
        return
    maker = RowTransform([source])
    for index in range(len(source)):
        parsed = parse_source_row(source, index)
        assert parsed.record is not None or parsed.problems
        for problem in parsed.problems:
            path, _, line = problem.where.rpartition(":")
            assert path == str(file) and 1 <= int(line) <= file.read_bytes().count(b"\n") + 1
        if parsed.record is not None:
            maker({"row": [index]})


@given(text=TEXT, task=st.sampled_from([*TASKS, "math"]))
def test_the_parser_takes_any_completion(text: str, task: str):
    for parse in (extract_answer, extract_boxed, lambda t: parse_answer(t, task)):
        found = parse(text)
        assert found is None or (found == found.strip() != "")
    assert all(step.strip() for step in parse_steps(text, task))
    if task in TASKS:
        assert predicted_answer(text, Record(id=0, question="", answer="1", task=task)) == parse_answer(text, task)
    assert completion_text([{"role": "assistant", "content": text}]) == text
    extract_json(text)


@given(value=st.one_of(TEXT, VALUES, BOX_TEXT), original=SIZES, resized=st.one_of(st.none(), SIZES))
def test_boxes_are_found_or_not_and_their_overlap_is_a_share(value: object, original: tuple, resized: tuple | None):
    boxes = boxes_in(value) if isinstance(value, str) else []
    single = only_box(value)
    for box in [*boxes, *([] if single is None else [single])]:
        other = convert(box, "resized", "thousand", original, resized)
        assert 0.0 <= iou(box, other) <= 1.0 and -1.0 <= giou(box, other) <= 1.0


@given(numbers=st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4))
def test_a_written_box_is_read_as_it_was_written(numbers: list[float]):
    text = json.dumps({"bbox_2d": [float(f"{number:.3f}") for number in numbers]})
    expected = Box(*(max(0.0, float(f"{number:.3f}")) for number in numbers))
    assert only_box(text) == expected
