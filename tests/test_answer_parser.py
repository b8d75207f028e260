"""The parser: thoughts in the marks of every family, GLM's boxes, what is left to write after an opening."""

from __future__ import annotations

import pytest

from vlm_grpo.answer_parser import (
    THINKING_TAGS,
    is_inside_thinking,
    parse_answer,
    parse_steps,
    remaining_turn,
    strip_thinking,
)
from vlm_grpo.rewards import score

THINKS, SILENT = "<think>\n", "<think>\n\n</think>\n\n"
BOX = "<|begin_of_box|>{}<|end_of_box|>"


@pytest.mark.parametrize("start, end", THINKING_TAGS)
def test_no_answer_counts_inside_a_thought_of_any_family(start: str, end: str):
    draft = "<answer>7</answer>"
    for text in (f"{start}{draft}", f"{start}{draft}{end}", f"{draft}{end}"):
        assert parse_answer(text) is None
        assert parse_answer(text, "math") is None
    text = f"{start}It is 3. Not {draft}.{end}\n<answer>3</answer>"
    assert (parse_answer(text), strip_thinking(text)) == ("3", "\n<answer>3</answer>")
    assert parse_steps(text)[0] == "It is 3."
    assert score("format", text) == 0.0  # a draft is a second answer where the prompt has opened no thought
    assert score("format", text, turn_opening=start) == score("format", f"{start}a{end}<answer>3</answer>") == 1.0


@pytest.mark.parametrize(
    "text, answer",
    [
        (f"<answer>{BOX.format(3)}</answer>", "3"),
        (f"It is {BOX.format(' 3 ')}.", "3"),
        (f"{BOX.format(4)} or {BOX.format(3)}", "3"),
        (f"<think>{BOX.format(4)}", None),
        (f"{BOX.format(4)}<answer>3</answer>", "3"),
        (f"<answer>{BOX.format(4)} {BOX.format(3)}</answer>", f"{BOX.format(4)} {BOX.format(3)}"),
        (BOX.format(""), None),
    ],
)
def test_boxes_of_glm_hold_the_answer(text: str, answer: str | None):
    assert parse_answer(text) == answer


def test_boxes_of_glm_go_with_the_form():
    assert score("accuracy", f"<answer>{BOX.format(3)}</answer>", answer="3") == 1.0
    assert score("format", f"<think>a</think><answer>{BOX.format(3)}</answer>") == 1.0
    assert score("format", f"<think>a</think>{BOX.format(3)}") == 0.0


@pytest.mark.parametrize("task", ["vqa", "grounding"])
def test_tasks_without_a_thought_take_one_that_the_prompt_opened(task: str):
    answer = {
        "vqa": '{"reasoning_steps": ["a cat"], "answer": "cat"}',
        "grounding": '<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>',
    }[task]
    for opening in (THINKS, "</think>", SILENT):
        turn = opening + remaining_turn(answer, opening)
        assert score("format", turn, task=task, turn_opening=opening) == 1.0
        assert score("format", turn, task=task) == 0.0
        assert score("format", answer, task=task, turn_opening=opening) == 0.0
    assert score("format", f"<think>\nlong{answer}", task=task, turn_opening=THINKS) == 0.0
    assert parse_answer(turn, task) is not None


@pytest.mark.parametrize(
    "turn, opening, rest",
    [
        ("<think>a</think><answer>1</answer>", "", "<think>a</think><answer>1</answer>"),
        ("<think>\na</think>", THINKS, "a</think>"),
        ("<think>a</think><answer>1</answer>", THINKS, "a</think><answer>1</answer>"),
        ("<answer>1</answer>", THINKS, "\n</think>\n\n<answer>1</answer>"),
        ("<answer>1</answer>", "</think><think>", "\n</think>\n\n<answer>1</answer>"),
        ("<answer>1</answer>", "[THINK]", "\n[/THINK]\n\n<answer>1</answer>"),
        ("<think>a</think>\n<answer>1</answer>", SILENT, "<answer>1</answer>"),
        ("<answer>1</answer>", SILENT, "<answer>1</answer>"),
        ("<think>a</think><answer>1</answer>", "</think>", "<answer>1</answer>"),
        ("<answer>1</answer>", "So: ", "<answer>1</answer>"),
        ("", THINKS, ""),
    ],
)
def test_a_turn_goes_on_where_the_prompt_stops(turn: str, opening: str, rest: str):
    assert remaining_turn(turn, opening) == rest


def test_a_text_may_end_in_a_thought():
    assert [is_inside_thinking(text) for text in ("", THINKS, SILENT, "<think>a</think>b[THINK]c")] == [0, 1, 0, 1]
