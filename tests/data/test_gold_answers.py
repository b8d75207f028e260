"""True answers as data sets write them: read where the meaning is clear, else refused with the line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.data.files import turns
from vlm_grpo.data.converters.swift import to_jsonl
from vlm_grpo.data.errors import Problem
from vlm_grpo.data.parsing import ReaderConfig, parse_row
from vlm_grpo.records import Record
from vlm_grpo.rewards import score
from vlm_grpo.tasks import ideal_completion


def read(row: dict[str, Any], **config: Any) -> Record:
    parsed = parse_row({"question": "q", **row}, "a.jsonl:1", 0, ReaderConfig(**config))
    assert not parsed.problems, parsed.problems
    return parsed.record


def complaint(row: dict[str, Any], **config: Any) -> Problem:
    (problem,) = parse_row({"question": "q", **row}, "a.jsonl:1", 0, ReaderConfig(**config)).problems
    return problem


BOX = {"Position": [1, 364, 98, 649], "Confidence": 1}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"<answer>[{BOX}]</answer>", [BOX]),  # Python's quotes, as in Visual-RFT
        (json.dumps([BOX]), [BOX]),
        ([BOX], [BOX]),
        *((text, []) for text in ("No Objects", "No objects.", "None", "<answer>no object</answer>", [])),
    ],
)
def test_lists_of_boxes(answer: object, expected: list):
    record = read({"solution": answer}, task="ovd")
    assert record.answer == expected
    completion = ideal_completion(record)
    for reward in ("detection", "format", "od_ap", "accuracy"):
        assert score(reward, completion, record=record) == 1.0
    as_columns = {"answer": answer, "task": "ovd"}  # of TRL's data sets, which nobody reads before
    assert score("detection", completion, **as_columns) == 1.0


@pytest.mark.parametrize("answer", ["dog", [{"bbox": [1, 2, 3, 4]}], [[1, 2]], {"label": "dog"}, 3])
def test_what_is_no_list_of_boxes_is_refused(answer: object):
    problem = complaint({"answer": answer}, task="ovd")
    assert (problem.field, problem.is_warning) == ("answer", False)
    assert problem.expected.startswith("a list of boxes, [{")
    assert ("COCO's x, y, width, height" in problem.expected) == ("bbox'" in repr(answer))


def test_a_box_in_pythons_quotes():
    record = read({"answer": "{'bbox_2d': [1, 2, 5, 9]}"}, task="rec")
    assert record.answer == {"bbox_2d": [1, 2, 5, 9]}
    assert score("iou", ideal_completion(record), record=record) == 1.0
    assert read({"answer": "{'a': 1}"}).answer == "{'a': 1}"  # elsewhere text is text


TALK = {"conversations": turns("q", "<answer>3</answer>")}


def test_the_answer_key_counts_for_conversations_too():
    row = {**TALK, "gold": "4"}
    assert read(row).answer == "3"
    assert read(row, answer_key="gold").answer == "4"
    assert read({**row, "answer": "5"}, answer_key="answer").answer == "5"
    problem = complaint(row, answer_key="nope")
    assert (problem.field, problem.expected) == ("nope", "the answer in column nope")


def test_a_second_answer_that_says_something_else_is_refused():
    problem = complaint({**TALK, "solution": "4"})
    assert (problem.field, problem.found) == ("solution", "'4', not the answer of the gpt turn")
    assert "--answer_key solution" in problem.expected and "--ignore_columns solution" in problem.expected
    assert read({**TALK, "solution": "4"}, ignored=("solution",)).answer == "3"
    for same in ("3", 3, "<answer>3</answer>", " 3. "):
        assert read({**TALK, "answer": same}).answer == "3"
    boxes = {"conversations": turns("q", '{"bbox_2d": [1, 2, 5, 9]}'), "solution": [1, 2, 5, 9]}
    assert read(boxes, task="rec").answer == {"bbox_2d": [1, 2, 5, 9]}


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (["cat", "dog"], 0, "A"),  # ScienceQA counts from 0
        (["cat", "dog"], 1, "B"),
        (["10", "30"], 30, "B"),
        (["0", "1", "2"], 1, "B"),  # number and text are the same option
        (["10", "30"], "30", "30"),
    ],
)
def test_numbers_of_options(options: list[str], answer: object, expected: object):
    record = read({"choices": options, "answer": answer})
    assert record.answer == expected
    letter = "AB"[options.index(expected)] if expected in options else expected
    for text in (letter, options["AB".index(letter)]):
        assert score("accuracy", f"<answer>{text}</answer>", record=record) == 1.0
    assert score("accuracy", "<answer>7</answer>", record=record) == 0.0


def test_numbers_that_name_no_option_or_two():
    assert (
        "the number of one of the 2 options, counted from 0" in complaint({"choices": ["a", "b"], "answer": 2}).expected
    )
    assert "the text of option A and the number of B" in complaint({"choices": ["1", "2"], "answer": 1}).expected


def test_a_system_column_is_the_system_turn():
    assert read({"answer": "a", "system": "Be brief."}).system == "Be brief."
    assert read({**TALK, "system": "Be brief."}).system == "Be brief."
    assert read({**TALK, "system": ""}).system is None
    both = {"conversations": [{"from": "system", "value": "s"}, *turns("q", "3")]}
    assert read({**both, "system": "s"}).system == "s"
    assert complaint({**both, "system": "t"}).expected == "one system turn"
    assert complaint({**TALK, "system": 3}).expected == "text"


def test_a_system_column_survives_a_conversion():
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "3"}], "system": "Be brief."}
    assert read(to_jsonl(row, "")).system == "Be brief."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"solution": {"role": "assistant", "content": "3"}}, "3"),
        ({"reward_model": {"style": "rule", "ground_truth": "72"}}, "72"),
        ({"reward_model": {"style": "rule", "ground_truth": "72"}, "answer": "71"}, "71"),
        ({"answer": {"a": 1, "b": [1, 2]}}, {"a": 1, "b": [1, 2]}),
        ({"answer": {"role": "king", "content": "3"}}, {"role": "king", "content": "3"}),
    ],
)
def test_answers_inside_objects(row: dict[str, Any], expected: object):
    assert read(row).answer == expected
    assert read({"prompt": [{"role": "user", "content": "q"}], **row}).answer == expected


@pytest.mark.parametrize("name", ["image", "url", "path"])
def test_image_blocks_name_their_image(name: str):
    content = [{"type": "image", name: "a.png"}, {"type": "text", "text": "q"}]
    record = read({"question": None, "messages": [{"role": "user", "content": content}], "answer": "3"})
    assert [ref.source for ref in record.images] == ["a.png"] and record.question == "<image>q"
