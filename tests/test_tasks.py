from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.data.parsing import ReaderConfig, parse_row
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
        ("gui", {"answer": []}),
        ("gui", {"answer": "[]"}),
        ("math", {"answer": "5"}),
        ("math", {"answer": 5}),
        ("math", {"answer": r"\frac{1}{2}"}),
        ("math", {"answer": r"$x^{2} + 1$"}),
        ("math", {"answer": r"\boxed{2\sqrt{5}}"}),
        ("math", {"answer": "B", "options": ("1", "2"), "method": "mcq"}),
    ],
)  # fmt: skip
def test_ideal_completion_gets_full_format_and_accuracy(task: str, values: dict[str, Any]):
    record = Record(id=1, question="q", task=task, **values)
    completion = ideal_completion(record)
    assert score("format", completion, record=record) == 1.0
    assert score("accuracy", completion, record=record) == 1.0


@pytest.mark.parametrize("task", ["rec", "grounding"])
@pytest.mark.parametrize("answer", [[1, 2, 30, 40], "[1, 2, 30, 40]", {"bbox_2d": [1, 2, 30, 40]}])
def test_ideal_box_gets_full_rewards(task: str, answer: Any):
    record = Record(id=1, question="q", answer=answer, task=task)
    for name in TASKS[task].rewards:
        assert score(name, ideal_completion(record), record=record) == 1.0


BOXES = [{"Position": [1, 2, 30, 40], "Confidence": 1.0}, {"Position": [500, 2, 530, 40], "Confidence": 1.0}]
LABELLED = [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [50, 2, 90, 40], "label": "dog"}]


@pytest.mark.parametrize("answer", [BOXES, json.dumps(BOXES), LABELLED, "None", [], "[]"])
def test_ideal_detections_get_full_rewards(answer: Any):
    record = Record(id=1, question="q", answer=answer, task="ovd")
    for name in TASKS["ovd"].rewards:
        assert score(name, ideal_completion(record), record=record) == 1.0


def test_ideal_completions_have_the_form_of_their_task():
    answers = {"grounding": [1, 2, 3, 4], "ovd": [], "math": "$5$"}
    said = {task: ideal_completion(Record(1, "q", answer, task=task)) for task, answer in answers.items()}
    assert said["grounding"] == '<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>'
    assert said["ovd"].endswith("</think>\n<answer>None</answer>")
    assert said["math"].endswith(r"</think>" + "\n" + r"<answer>\boxed{5}</answer>")


def test_the_method_of_a_task_scores_records_that_name_none():
    """0.5 is 1/2 as mathematics only; a list in another order is the same list for gui."""
    half = Record(1, "q", r"\frac{1}{2}", task="math")
    assert score("accuracy", r"<think>a</think><answer>\boxed{0.5}</answer>", record=half) == 1.0
    assert score("accuracy", r"<think>a</think><answer>\boxed{0.6}</answer>", record=half) == 0.0
    assert score("accuracy", r"<think>a</think> It is \boxed{0.5}", record=half) == 1.0
    other = Record(1, "q", r"\frac{1}{2}", task="math", method="exact")
    assert score("accuracy", r"<think>a</think><answer>\boxed{0.5}</answer>", record=other) == 0.0
    assert score("accuracy", r"<think>a</think><answer>\boxed{\frac{1}{2}}</answer>", record=other) == 1.0
    defects = Record(1, "q", "a, b", task="gui")
    assert score("accuracy", '<answer>["b", "a"]</answer>', record=defects) == 1.0
    assert score("accuracy", '<answer>["b", "a"]</answer>', record=Record(1, "q", "a, b")) == 0.0


@pytest.mark.parametrize("method", [None, "default"])
def test_accuracy_of_boxes_is_their_overlap_and_of_masks_theirs(method: str | None):
    """Boxes of 8 and of 4 units of height that share 4 of the 8: IoU 0.5. The mask is the left half of 4 x 4 pixels."""
    for task in ("rec", "grounding"):
        record = Record(1, "q", {"bbox_2d": [0, 0, 10, 8]}, task=task, method=method)
        for given in ('{"bbox_2d": [0, 0, 10, 4]}', "[0, 0, 10, 4]", '[{"bbox_2d": [0, 0, 10, 4]}]'):
            assert score("accuracy", f"<answer>{given}</answer>", record=record) == 0.5
        assert score("accuracy", "<answer>a dog</answer>", record=record) == 0.0
    mask = {"size": [4, 4], "counts": [0, 8, 8]}
    record = Record(1, "q", "", task="seg", method=method, extra={"mask": mask, "box_space": "thousand"})
    square = (
        '{"polygon": [{"bbox_2d": [0, 0, 1000, 1000], "points": [[-100, -100], [100, -100], [100, 100], [-100, 100]]}]}'
    )
    said = f"<think>x</think><answer>{square}</answer>"
    assert score("accuracy", said, record=record) == score("mask_iou", said, record=record) == 0.5


def test_a_record_may_ask_for_another_accuracy_than_its_task():
    record = Record(1, "q", {"bbox_2d": [0, 0, 10, 8]}, task="rec", method="exact")
    assert score("accuracy", '<answer>{"bbox_2d": [0, 0, 10, 4]}</answer>', record=record) == 0.0


@pytest.mark.parametrize(
    ("truth", "said"), [("No Defect", "[]"), ([], "No defect."), ("No Defect", '["No Defect"]'), ("[]", "No Defect")]
)
def test_no_defect_is_an_empty_list(truth: object, said: str):
    record = Record(1, "q", truth, task="gui")
    assert score("accuracy", f"<think>x</think><answer>{said}</answer>", record=record) == 1.0
    assert score("accuracy", '<answer>["frozen"]</answer>', record=record) == 0.0
    assert score("accuracy", '<answer>["frozen", "No Defect"]</answer>', record=record) == 0.0


@pytest.mark.parametrize(
    ("said", "accuracy", "form"),
    [
        ('{"reasoning_steps": ["a"], "answer": "5"}', 1.0, 1.0),
        ('{"reasoning_steps": ["a"], "answer": 5}', 1.0, 0.0),
        ('{"reasoning_steps": ["a"], "answer": true}', 0.0, 0.0),
        ('Here it is: {"reasoning_steps": ["a"], "answer": "5"}', 0.0, 0.0),
        ("5", 0.0, 0.0),
    ],
)
def test_vqa_reads_a_bare_number_but_no_object_with_text_around_it(said: str, accuracy: float, form: float):
    record = Record(1, "q", "5", task="vqa")
    assert score("accuracy", said, record=record) == accuracy
    assert score("format", said, record=record) == form


def test_ideal_vqa_has_the_reference_steps():
    record = Record(id=1, question="q", answer="x", task="vqa", reference_steps=("a", "b"))
    assert json.loads(ideal_completion(record)) == {"reasoning_steps": ["a", "b"], "answer": "x"}


def test_gold_text_and_boxed():
    assert gold_text("a {b}") == "a {b}"
    assert gold_text({"a": ["ü"]}) == '{"a": ["ü"]}'
    assert boxed("the left one") == "the left one"
    assert boxed([1, 2]) == [1, 2]


def sections() -> dict[str, list[str]]:
    """The code blocks of each section of docs/tasks.md: a line of data, its prompt, a completion."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (\S+)\n", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: re.findall(r"^```(?:json|text)\n(.*?)\n```$", part, re.DOTALL | re.M) for name, part in found.items()}


@pytest.mark.parametrize("name", [*TASKS, "Videos"])
def test_the_documentation_says_what_is_asked_and_what_is_paid(name: str):
    line, prompt, completion = sections()[name]
    parsed = parse_row(json.loads(line), "docs", 0, ReaderConfig())
    assert parsed.problems == []
    record = parsed.record
    task = TASKS[record.task]
    assert task.name == (name if name in TASKS else "default")
    (message,) = PROMPTS[task.prompt].render(record, system=task.system)
    assert "".join(block.get("text", f"<{block['type']}>") for block in message["content"]) == prompt
    assert completion == ideal_completion(record)
    for reward in task.rewards:
        assert score(reward, completion, record=record) >= (0.75 if reward == "mask_iou" else 1.0)
