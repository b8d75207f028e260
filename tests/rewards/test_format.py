from __future__ import annotations

import pytest

from vlm_grpo.rewards import score
from vlm_grpo.tasks import TASKS


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_example_has_the_right_form(name: str):
    assert score("format", TASKS[name].example, task=name) == 1.0
    assert score("format", f"\n {TASKS[name].example} \n", task=name) == 1.0


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("spoil", ["text {}", "{} text", "{}{}", ""])
def test_text_around_or_twice_is_not_the_form(name: str, spoil: str):
    example = TASKS[name].example
    assert score("format", spoil.format(example, example) if spoil else "", task=name) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>7</answer>",
        "<think>a</think><answer></answer>",
        "<think>a</think> so <answer>7</answer>",
        "<think>a<think>b</think><answer>7</answer>",
        "<think>a</think><answer>7</answer><answer>7</answer>",
    ],
)
def test_default_form_is_strict(completion: str):
    assert score("format", completion) == 0.0


@pytest.mark.parametrize(
    "answer", ["[1, 2, 3, 4]", '{"bbox_2d": [1, 2, 3]}', "{'bbox_2d': [1, 2, 3, 4]}", '{"bbox_2d": ["1", 2, 3, 4]}']
)
def test_rec_needs_the_box_json(answer: str):
    assert score("format", f"<think>a</think><answer>{answer}</answer>", task="rec") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        '{"reasoning_steps": [], "answer": "a"}',
        '{"reasoning_steps": ["a"], "answer": ""}',
        '{"reasoning_steps": ["a"], "answer": 3}',
        '{"reasoning_steps": ["a"], "answer": "a", "more": 1}',
        "{'reasoning_steps': ['a'], 'answer': 'a'}",
    ],
)
def test_vqa_needs_exactly_its_two_keys(text: str):
    assert score("format", text, task="vqa") == 0.0
