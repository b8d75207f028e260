"""What a policy tries in order to be paid without being right; none of it may pay."""

from __future__ import annotations

import json

import pytest

from vlm_grpo.rewards import score
from vlm_grpo.text import parse_answer

BOX = {"bbox_2d": [10, 10, 50, 50]}
REFERENCE = ("A dog lies on the mat.", "The mat is green.")


def answered(answer: str) -> str:
    return f"<think>I look.</think><answer>{answer}</answer>"


@pytest.mark.parametrize("name", ["accuracy", "format", "iou", "iou@0.5", "iou^2", "giou", "center"])
@pytest.mark.parametrize("completion", ["", "<answer></answer>", answered(""), answered(" \n"), "<think>", "<answer>"])
def test_an_empty_answer(name: str, completion: str):
    assert score(name, completion, answer=BOX, task="rec") == 0.0


def test_two_answers():
    assert score("accuracy", "<answer>7</answer><answer>8</answer>", answer="7") == 0.0
    assert score("format", "<think>a</think><answer>7</answer><answer>8</answer>") == 0.0
    assert score("accuracy", answered("7 or 8"), answer="7") == 0.0
    assert score("accuracy", answered("yes and no"), answer="yes") == 0.0
    assert score("accuracy", answered("A and B"), answer="A", options=["x", "y"]) == 0.0
    assert score("accuracy", '{"answer": "7", "answer": "8", "reasoning_steps": ["a"]}', answer="8", task="vqa") == 0.0
    assert score("format", '{"answer": "7", "answer": "8", "reasoning_steps": ["a"]}', task="vqa") == 0.0


def test_the_answer_only_inside_think():
    for text in ("<think><answer>7</answer></think>", "<think>7</think>", "<think>a<answer>7</answer>"):
        assert score("accuracy", text, answer="7") == 0.0
        assert score("format", text) == 0.0
    assert score("iou", "<think><answer>[10, 10, 50, 50]</answer></think>", answer=BOX) == 0.0


def test_many_boxes_and_one_box_many_times():
    thirty = json.dumps([{"bbox_2d": [n, n, n + 40, n + 40], "label": f"thing {n}"} for n in range(30)])
    same = json.dumps([BOX] * 20)
    for name in ("iou", "iou@0.5", "iou^2", "giou", "center"):
        assert score(name, answered(thirty), answer=BOX) == 0.0
        assert score(name, answered(same), answer=BOX) == 0.0
    assert score("repetition", answered(same)) == pytest.approx(-0.95)  # 1 of 20 boxes is new
    assert score("repetition", answered(json.dumps(BOX))) == 0.0


def test_a_box_over_the_whole_image():
    whole = answered('{"bbox_2d": [0, 0, 1000, 1000]}')
    assert score("iou", whole, answer=BOX) == pytest.approx(40 * 40 / 1e6)
    assert score("iou@0.3", whole, answer=BOX) == 0.0
    assert score("giou", whole, answer=BOX) < 0.51  # 0.5 is what a far-away box of no overlap tends to
    assert score("center", whole, answer=BOX) == 0.0


def test_none_plus_text_and_garbage_where_the_truth_is_none():
    assert score("accuracy", answered("None"), answer="None") == 1.0
    for text in ("None, or the left one", "None [10, 10, 50, 50]", "[10, 10, 50, 50]", "garbage"):
        assert score("accuracy", answered(text), answer="None") == 0.0
    assert score("iou", answered("None, perhaps"), answer=BOX) == 0.0


def test_a_long_ramble_does_not_wrap_round():
    from vlm_grpo.rewards import make_reward

    length = make_reward("length", max_length=256)
    right, wrong = answered("7"), answered("8")
    values = length([right] * 4, answer=["7"] * 4, completion_ids=[[0] * n for n in (1, 256, 512, 2048)])
    assert values[0] > values[1] == values[2] == values[3] == pytest.approx(0.5)
    values = length([wrong] * 3, answer=["7"] * 3, completion_ids=[[0] * n for n in (256, 512, 2048)])
    assert values == [pytest.approx(-0.5)] * 3  # never above a right answer
    assert make_reward("overlong", max_length=256)([right], completion_ids=[[0] * 2048]) == [-1.0]
    assert score("repetition", "so it is " * 600) < -0.99
    assert score("repetition", "ab" * 1000) < -0.99  # without a single space


def test_neither_yes_nor_no():
    assert score("accuracy", answered("maybe"), answer="yes") == 0.0
    assert score("accuracy", answered("I know another"), answer="no") == 0.0
    assert score("accuracy", answered("blue"), answer="red", method="yes_no") is None


def test_the_right_number_with_the_wrong_unit():
    assert score("accuracy", answered("12 cm"), answer="12 kg") == 0.0
    assert score("accuracy", answered("12 cm"), answer="12 m") == 0.0


def test_the_letter_inside_a_word():
    for text in ("Vitamin C", "Because", "ABC", "Cat"):
        assert score("accuracy", answered(text), answer="C", options=["x", "y", "z"]) == 0.0


def test_braces_inside_json_strings():
    text = json.dumps({"reasoning_steps": ['a { brace } and "quote"'], "answer": "{7}"})
    assert parse_answer(text, "vqa") == "{7}"
    assert score("format", text, task="vqa") == 1.0
    assert score("accuracy", 'see {"answer": "7"} there', answer="7", task="vqa") == 0.0


@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", "```\n{}\n```"])
def test_every_reward_reads_the_same_json(fence: str):
    steps = {"reasoning_steps": list(REFERENCE), "answer": "7"}
    text = fence.replace("{}", json.dumps(steps))
    quoted = fence.replace("{}", str(steps))  # single quotes are a Python repr, not JSON
    for name in ("format", "accuracy", "reasoning", "reasoning_overlap"):
        assert score(name, text, answer="7", task="vqa", reference_steps=REFERENCE) == 1.0
        assert score(name, quoted, answer="7", task="vqa", reference_steps=REFERENCE) == 0.0
    for name in ("format", "iou"):
        assert score(name, answered(fence.replace("{}", json.dumps(BOX))), answer=BOX, task="rec") == 1.0
        assert score(name, answered(fence.replace("{}", str(BOX))), answer=BOX, task="rec") == 0.0


def test_what_other_systems_pay_for():
    assert score("accuracy", answered("12 apples"), answer="13 apples") == 0.0
    assert score("accuracy", answered("2019-05-01"), answer="2019-05-02") == 0.0
    assert score("accuracy", answered("11"), answer="12") == 0.0
    assert score("format", "<image 1> is a cat") == 0.0
