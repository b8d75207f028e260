from __future__ import annotations

import json
from typing import Any

import pytest

from vlm_grpo.prompts import PROMPTS
from vlm_grpo.records import Record
from vlm_grpo.rewards import REWARDS, score
from vlm_grpo.tasks import TASKS, boxed, gold_text, ideal_completion


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_is_whole(name: str):
    task = TASKS[name]
    assert task.name == name
    assert task.prompt in PROMPTS
    assert {"format", *task.rewards} <= set(REWARDS)
    assert sum(task.rewards.values()) > 0
    assert score("format", task.example, task=name) == 1.0


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("default", {"answer": "a red ball"}),
        ("default", {"answer": 12}),
        ("default", {"answer": ["a", "b"]}),
        ("default", {"answer": "B", "options": ("x", "y")}),
        ("counting", {"answer": "3"}),
        ("counting", {"answer": 3}),
        ("vqa", {"answer": "a \"quoted\" sign", "reference_steps": ("A sign hangs there.",)}),
        ("vqa", {"answer": 3}),
        ("gui", {"answer": ["no response", "wrong icon"], "method": "all_match"}),
        ("gui", {"answer": [{"type": "no response"}], "method": "all_match"}),
    ],
)  # fmt: skip
def test_ideal_completion_gets_full_format_and_accuracy(task: str, values: dict[str, Any]):
    record = Record(id=1, question="q", task=task, **values)
    completion = ideal_completion(record)
    assert score("format", completion, record=record) == 1.0
    assert score("accuracy", completion, record=record) == 1.0


@pytest.mark.parametrize("answer", [[1, 2, 30, 40], "[1, 2, 30, 40]", {"bbox_2d": [1, 2, 30, 40]}])
def test_ideal_box_gets_full_rewards(answer: Any):
    record = Record(id=1, question="q", answer=answer, task="rec")
    for name in TASKS["rec"].rewards:
        assert score(name, ideal_completion(record), record=record) == 1.0


def test_ideal_vqa_has_the_reference_steps():
    record = Record(id=1, question="q", answer="x", task="vqa", reference_steps=("a", "b"))
    assert json.loads(ideal_completion(record)) == {"reasoning_steps": ["a", "b"], "answer": "x"}


def test_gold_text_and_boxed():
    assert gold_text("a {b}") == "a {b}"
    assert gold_text({"a": ["ü"]}) == '{"a": ["ü"]}'
    assert boxed("the left one") == "the left one"
    assert boxed([1, 2]) == [1, 2]
