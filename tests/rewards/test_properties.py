"""What holds for every text and every box."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_grpo.rewards import REWARDS, score
from vlm_grpo.rewards.quantity import agree, quantity

TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", '"answer"', "7", "12 cm", "B", "yes",
             ",", "$", "\\boxed{", "1e5", "[1, 2, 3, 4]", "2019-05-01", " ", "\n", "bbox_2d", "/", "0"]
        ),
        max_size=14,
    ).map("".join),
)  # fmt: skip
TRUTH = st.sampled_from(["7", "12 cm", "B", "yes", "red", [0, 0, 9, 9], {"a": 1}, ["a", "b"], 0.5, "2019-05-01", None])
OFFLINE = [name for name in REWARDS if name != "reasoning"]
SIDE = st.integers(0, 200)


@pytest.mark.parametrize("task", ["default", "vqa", "rec"])
@given(text=TEXT, truth=TRUTH)
@settings(max_examples=150, deadline=None)
def test_every_reward_takes_every_text_and_stays_in_range(task: str, text: str, truth: object):
    for name in OFFLINE:
        value = score(name, text, answer=truth, task=task, options=["x", "y"], reference_steps=["a b c"])
        assert value is None or -1.0 <= value <= 1.0


@given(numbers=st.lists(st.integers(0, 9), min_size=1, max_size=5), data=st.data())
@settings(max_examples=50, deadline=None)
def test_all_match_does_not_see_the_order(numbers: list[int], data: st.DataObject):
    mixed = data.draw(st.permutations(numbers))
    completion = f"<answer>{json.dumps(mixed)}</answer>"
    assert score("accuracy", completion, answer=numbers, method="all_match") == 1.0
    assert score("accuracy", completion, answer=[*numbers, 1], method="all_match") == 0.0


@given(x=SIDE, y=SIDE, width=st.integers(1, 100), height=st.integers(1, 100), shift=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_better_box_never_scores_lower(x: int, y: int, width: int, height: int, shift: int):
    truth = [x, y, x + width, y + height]
    for name in ("iou", "iou^2", "giou", "iou@0.5", "center"):
        values = [
            score(name, f"<answer>[{x + d}, {y}, {x + d + width}, {y + height}]</answer>", answer=truth)
            for d in (0, shift, shift + 1)
        ]
        assert values[0] == 1.0
        assert values == sorted(values, reverse=True)


@given(value=st.integers(-(10**30), 10**30), other=st.integers(-(10**30), 10**30))
@settings(max_examples=100, deadline=None)
def test_integers_are_equal_only_to_themselves(value: int, other: int):
    assert agree(quantity(f"{value:,}"), quantity(str(value)))
    assert agree(quantity(str(other)), quantity(str(value))) == (value == other)
