from __future__ import annotations

import pytest

from vlm_grpo.rewards import make_reward

RIGHT = "<think>a</think><answer>7</answer>"


@pytest.mark.parametrize(("tokens", "expected"), [(0, 1.0), (50, 0.75), (100, 0.5), (2048, 0.5)])
def test_length_falls_from_one_to_a_half_and_never_wraps(tokens: int, expected: float):
    reward = make_reward("length", max_length=100)
    assert reward([RIGHT], completion_ids=[[0] * tokens], answer=["7"]) == [pytest.approx(expected)]


@pytest.mark.parametrize(("tokens", "expected"), [(0, -1.0), (100, -0.5), (2048, -0.5)])
def test_a_wrong_answer_never_earns_by_length(tokens: int, expected: float):
    reward = make_reward("length", max_length=100)
    assert reward([RIGHT], completion_ids=[[0] * tokens], answer=["8"]) == [pytest.approx(expected)]


@pytest.mark.parametrize(("tokens", "expected"), [(80, 0.0), (90, -0.5), (100, -1.0), (200, -1.0)])
def test_overlong_is_daposs_soft_punishment(tokens: int, expected: float):
    reward = make_reward("overlong", max_length=100, cache=20)
    assert reward([RIGHT], completion_ids=[[0] * tokens]) == [pytest.approx(expected)]


def test_repetition_counts_repeated_six_grams():
    assert make_reward("repetition")(["a b c d e f g h"]) == [0.0]
    assert make_reward("repetition")(["a b c d e f " * 2]) == [pytest.approx(-1 / 7)]  # 7 six-grams, 6 different
    assert make_reward("repetition")(["字" * 70])[0] == pytest.approx(-(1 - 1 / 65))
