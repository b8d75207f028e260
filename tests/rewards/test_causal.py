"""Order of reasoning steps and the causal reward, by the words of the steps and numbers worked out by hand."""

from __future__ import annotations

import itertools
import json

import pytest

from vlm_grpo.rewards import make_reward, score
from vlm_grpo.rewards.reasoning import kendall, longest_increasing

STEPS = ("A dog lies there.", "The mat is green.", "Two cups stand left.", "Rain falls outside.")


def vqa(order: list[int], answer: str = "7") -> str:
    return json.dumps({"reasoning_steps": [STEPS[n] for n in order] or ["x"], "answer": answer})


def value(name: str, text: str, **options: object) -> float | None:
    reward = make_reward(name, encoder="overlap", **options)
    return reward([text], answer=["7"], task=["vqa"], reference_steps=[STEPS])[0]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 2, 3], 1.0),
        ([3, 2, 1, 0], 0.7),  # tau = -1: o = 0
        ([1, 0, 2, 3], 0.7 + 0.3 * 5 / 6),  # 5 of 6 pairs rise
        ([3], 0.4),  # one match has no order: F1 = 2 / 5
        ([3, 0], 2 / 3 * 0.7),
        ([0, 3], 2 / 3),
        ([], 0.0),
    ],
)
def test_order_by_kendalls_tau(order: list[int], expected: float):
    assert value("reasoning_ordered", vqa(order)) == pytest.approx(expected)


def test_order_by_the_longest_rising_subsequence_and_another_share():
    assert value("reasoning_ordered", vqa([1, 0, 2, 3]), measure="longest") == pytest.approx(0.7 + 0.3 * 3 / 4)
    assert value("reasoning_ordered", vqa([3, 2, 1, 0]), share=1.0) == 0.0
    with pytest.raises(RuntimeError, match="unknown order measure 'kendal'; did you mean 'kendall'"):
        value("reasoning_ordered", vqa([0, 1]), measure="kendal")


def test_measures_against_all_orders_of_five():
    for places in itertools.permutations(range(5)):
        rising = [a < b for a, b in itertools.combinations(places, 2)]
        tau = (2 * sum(rising) - 10) / 10
        assert kendall(places) == pytest.approx((tau + 1) / 2)
        runs = [run for size in range(1, 6) for run in itertools.combinations(places, size) if list(run) == sorted(run)]
        assert longest_increasing(places) == max(map(len, runs)) / 5


def test_swapping_two_steps_never_raises_the_reward():
    for order in itertools.permutations(range(4)):
        assert value("reasoning_ordered", vqa(list(order))) <= 1.0


@pytest.mark.parametrize(
    ("order", "answer", "expected"),
    [
        ([0, 1, 2, 3], "7", 1.0),
        ([], "7", 0.6),
        ([0, 3], "7", 0.6 + 0.4 * 2 / 3),
        ([0, 1, 2, 3], "8", 0.12),
        ([], "8", 0.0),
    ],
)
def test_causal(order: list[int], answer: str, expected: float):
    assert value("causal", vqa(order, answer)) == pytest.approx(expected)


def test_weights_of_causal():
    assert value("causal", vqa([0, 1, 2, 3]), right=0.5, steps=0.5) == 1.0
    assert value("causal", vqa([0, 1, 2, 3], "8"), wrong=1.0) == pytest.approx(0.4)


def test_without_truth_or_references_they_do_not_apply():
    for columns in ({"answer": "7"}, {"reference_steps": STEPS}):
        text = vqa([0])
        assert make_reward("causal", encoder="overlap")([text], **{k: [v] for k, v in columns.items()}) == [None]
    assert make_reward("reasoning_ordered", encoder="overlap")([vqa([0])], answer=["7"]) == [None]


def test_overlap_by_name_is_the_overlap_reward():
    for order in ([0, 1], [2], [3, 3, 1]):
        expected = score("reasoning_overlap", vqa(order), task="vqa", reference_steps=STEPS)
        assert value("reasoning", vqa(order)) == expected
