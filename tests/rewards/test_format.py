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


FAMILY_BOXES = [
    '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]',
    '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}',
    '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]\n```',
    "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>",
    "<ref>dog</ref><box>[[10, 20, 30, 40]]</box>",
    "<box>(10,20),(30,40)</box>",
    "(10, 20), (30, 40)",
    "<|begin_of_box|>[10, 20, 30, 40]<|end_of_box|>",
    "<|begin_of_box|>[[10,20,30,40]]<|end_of_box|>",
]


@pytest.mark.parametrize("answer", FAMILY_BOXES)
@pytest.mark.parametrize("task", ["rec", "grounding"])
def test_a_box_in_the_own_form_of_a_family_has_the_right_form(answer: str, task: str):
    text = f"{'<think>a</think>' if task == 'rec' else ''}<answer>{answer}</answer>"
    assert score("format", text, task=task) == 1.0
    assert score("iou", text, task=task, answer=[10, 20, 30, 40]) == 1.0


def test_tokens_of_places_are_thousandths():
    text = "<answer><loc0512><loc0256><loc1023><loc0768> dog</answer>"  # top, left, bottom, right of 1024
    assert score("format", text, task="grounding") == 1.0
    assert score("iou", text, answer=[250, 500, 750, 1000 * 1023 / 1024]) == pytest.approx(1.0)
    assert score("iou", "<answer><loc0512><loc0256><loc1023></answer>", answer=[250, 500, 750, 999]) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        f"{FAMILY_BOXES[0]} {FAMILY_BOXES[0]}",
        '[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [0, 0, 9, 9]}]',
        '[{"bbox_2d": [10, 20, 30, 40], "label": "[0, 0, 9, 9]"}]',
        "(10,20),(30,40) (0,0),(9,9)",
        "<box>[[10, 20, 30, 40], [0, 0, 9, 9]]</box>",
        "<|begin_of_box|>[10, 20, 30, 40]<|end_of_box|><|begin_of_box|>[0, 0, 9, 9]<|end_of_box|>",
        "<loc0001><loc0001><loc0009><loc0009><loc0001><loc0001><loc0009><loc0009>",
    ],
)
def test_several_boxes_are_no_several_tries(answer: str):
    text = f"<answer>{answer}</answer>"
    assert score("format", text, task="grounding") == score("iou", text, answer=[10, 20, 30, 40]) == 0.0


@pytest.mark.parametrize("answer", ["It is at (10,20),(30,40)", "[10, 20, 30, 40]", "[[10, 20, 30, 40]]"])
def test_what_surrounds_a_box_or_does_not_name_it_costs_the_form_alone(answer: str):
    text = f"<answer>{answer}</answer>"
    assert score("iou", text, answer=[10, 20, 30, 40]) == 1.0
    assert score("format", text, task="grounding") == 0.0


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


@pytest.mark.parametrize(
    "text",
    [
        '<think>a</think><answer>{"bbox_2d": [1, 2, 3, 4]}</answer>',
        '<answer>{"bbox_2d": [1, 2, 3, 4]}</answer><answer>{"bbox_2d": [1, 2, 3, 4]}</answer>',
        '{"bbox_2d": [1, 2, 3, 4]}',
        "<answer>[1, 2, 3, 4]</answer>",
        "<answer></answer>",
        "<anything",
    ],
)
def test_grounding_is_the_box_alone(text: str):
    assert score("format", text, task="grounding") == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("None", 1.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 1}]', 1.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 0.5, "label": "cat"}]', 1.0),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', 1.0),
        ("none", 0.0),
        ("[]", 0.0),
        ('"None"', 0.0),
        ('{"Position": [1, 2, 3, 4], "Confidence": 1}', 0.0),
        ('[{"Position": [1, 2, 3, 4]}]', 0.0),
        ('[{"Position": [1, 2, 3], "Confidence": 1}]', 0.0),
        ('[{"Position": [1, 2, 3, "4"], "Confidence": 1}]', 0.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 1.1}]', 0.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": true}]', 0.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 1, "label": 3}]', 0.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 1, "more": 3}]', 0.0),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 1}, {"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', 0.0),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', 0.0),
        ("[[1, 2, 3, 4]]", 0.0),
        ("[1]", 0.0),
    ],
)
def test_ovd_needs_its_list_or_none(answer: str, value: float):
    assert score("format", f"<think>a</think><answer>{answer}</answer>", task="ovd") == value
    assert score("format", f"<answer>{answer}</answer>", task="ovd") == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (r"\boxed{5}", 1.0),
        (r" \boxed{\frac{1}{2}} ", 1.0),
        ("5", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{ }", 0.0),
        (r"x = \boxed{5}", 0.0),
        (r"\boxed{5}.", 0.0),
        (r"\boxed{5} or \boxed{6}", 0.0),
        (r"\boxed{5", 0.0),
        (r"$\boxed{5}$", 0.0),
    ],
)
def test_math_needs_one_box_in_the_answer(answer: str, value: float):
    assert score("format", f"<think>a</think><answer>{answer}</answer>", task="math") == value
    assert score("format", f"<think>a</think>{answer}", task="math") == 0.0
