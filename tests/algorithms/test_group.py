"""The group family against numbers worked out by hand: lengths 4, 2, 3, 6; graded or binary rewards."""

from __future__ import annotations

import pytest
import torch

from vlm_grpo.algorithms import advantages as by_name
from vlm_grpo.algorithms.group import gmpo_loss, nanstd, sequence_ratio_loss
from vlm_grpo.algorithms.losses import LossInputs

LENGTHS = [4, 2, 3, 6]
GRADED = [1.0, 0.2, 0.5, 0.0]
BINARY = [1.0, 0.0, 0.0, 1.0]
TWO = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
SINGLE_TOKENS = [1] * 8
WORKED = [
    ("grpo", GRADED, {}, [1.3217, -0.5172, 0.1724, -0.9769]),
    ("grpo", BINARY, {}, [0.8659, -0.8659, -0.8659, 0.8659]),
    ("dr_grpo", GRADED, {}, [0.5750, -0.2250, 0.0750, -0.4250]),
    ("rloo", GRADED, {}, [0.7667, -0.3000, 0.1000, -0.5667]),
    ("rloo", BINARY, {}, [0.6667, -0.6667, -0.6667, 0.6667]),
    ("opo", GRADED, {"lengths": LENGTHS}, [0.6067, -0.1933, 0.1067, -0.3933]),
    ("opo", BINARY, {"lengths": LENGTHS}, [0.3333, -0.6667, -0.6667, 0.3333]),
    ("remax", GRADED, {"greedy": [0.5]}, [0.5, -0.3, 0.0, -0.5]),
    ("gpg", [1, 0, 0, 1, 0, 0, 0, 0], {}, [1, -1, -1, 1, 0, 0, 0, 0]),
    ("gpg", [1, 0, 0, 1, 1, 1, 1, 1], {}, [1, -1, -1, 1, 0, 0, 0, 0]),
    ("gpg", [*GRADED, *BINARY], {}, [0.575, -0.225, 0.075, -0.425, 0.5, -0.5, -0.5, 0.5]),
    ("grpo_passk", GRADED, {}, [0.5, 0, 0, 0]),
    ("grpo_passk", BINARY, {}, [0, 0, 0, 0]),
    ("grpo_passk", [1, 0, 0, 0], {}, [1, 0, 0, 0]),
    ("reinforce_plus_plus", GRADED, {"lengths": LENGTHS}, [1.4330, -0.4567, 0.2519, -0.9291]),
    (
        "reinforce_plus_plus",
        TWO,
        {"lengths": SINGLE_TOKENS},
        [0.7246, -1.2076, -1.2076, 0.7246, 0.7246, 0.7246, 0.7246, -1.2076],
    ),
    ("reinforce_plus_plus_baseline", TWO, {"lengths": SINGLE_TOKENS}, [1, -1, -1, 1, 0.5, 0.5, 0.5, -1.5]),
]


@pytest.mark.parametrize(("name", "rewards", "options", "expected"), WORKED)
def test_worked_numbers(name: str, rewards: list, options: dict, expected: list):
    found = by_name(name, rewards, num_generations=4, **options)
    assert torch.allclose(found, torch.tensor(expected, dtype=found.dtype), atol=1e-4)


@pytest.mark.parametrize("name", sorted({name for name, *_ in WORKED}))
def test_order_within_a_group_does_not_matter(name: str):
    """Completions, with their lengths, in another order: the same advantages in that order."""
    order = [2, 0, 3, 1]
    options = {"lengths": LENGTHS} if "lengths" in next(o for n, _, o, _ in WORKED if n == name) else {}
    options |= {"greedy": [0.5]} if name == "remax" else {}
    found = by_name(name, GRADED, num_generations=4, **options)
    if "lengths" in options:
        options["lengths"] = [LENGTHS[place] for place in order]
    again = by_name(name, [GRADED[place] for place in order], num_generations=4, **options)
    assert torch.allclose(again, found[order], atol=1e-6)


@pytest.mark.parametrize("name", sorted({name for name, *_ in WORKED}))
def test_a_row_without_reward_counts_nowhere(name: str):
    """The others are as they were, the row itself is 0; equal rewards give 0 too."""
    options = {"lengths": [*LENGTHS, 9]} if "lengths" in next(o for n, _, o, _ in WORKED if n == name) else {}
    options |= {"greedy": [0.5]} if name == "remax" else {}
    found = by_name(name, [*GRADED, float("nan")], num_generations=5, **options)
    if "lengths" in options:
        options["lengths"] = LENGTHS
    assert torch.allclose(found[:4], by_name(name, GRADED, num_generations=4, **options), atol=1e-6)
    assert found[4] == 0
    same = by_name(name, [0.5] * 4, num_generations=4, **options)
    assert torch.allclose(same, torch.zeros(4, dtype=same.dtype), atol=1e-6)


def test_spread_is_that_of_torch_and_0_for_one_value():
    assert torch.allclose(nanstd(torch.tensor([GRADED])), torch.tensor([GRADED]).std(dim=1, keepdim=True))
    assert nanstd(torch.tensor([[1.0], [float("nan")]])).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grp", GRADED, 4), "unknown algorithm 'grp'"),
        (("grpo", GRADED, 3), "4 rewards are not whole groups of 3"),
        (("opo", GRADED, 4), "'opo' needs lengths"),
        (("gspo_unlisted", GRADED, 4), "unknown algorithm"),
    ],
)
def test_what_is_missing_is_named(arguments: tuple, message: str):
    with pytest.raises((KeyError, ValueError, TypeError), match=message):
        by_name(*arguments)


@pytest.mark.parametrize(("advantage", "weight"), [(1.0, 0.9672), (-1.0, 1.1052)])
def test_gmpo_clips_the_side_that_makes_the_step_larger(advantage: float, weight: float):
    """Log-ratios .6, -.6, .1: clipped to .4, -.6, .1 (mean -.0333) for A > 0, to .6, -.4, .1 (mean .1) for A < 0."""
    ratios = torch.tensor([[0.6, -0.6, 0.1, 9.0]])
    tokens = LossInputs(ratios, torch.zeros(1, 4), torch.tensor([[advantage]]), torch.tensor([[1, 1, 1, 0]]))
    assert torch.allclose(gmpo_loss(tokens), torch.full((1, 4), -advantage * weight), atol=1e-4)


def test_a_completion_is_one_action():
    """Log-ratios .1, -.1, -.5, 0 sum to -.5: ratio .6065, clipped to .8 where that makes the loss larger."""
    for advantage, expected in ((1.0, -0.6065), (-1.0, 0.8)):
        tokens = LossInputs(
            torch.tensor([[-0.5, -1.5, -2.5, -0.1]]),
            torch.tensor([[-0.6, -1.4, -2.0, -0.1]]),
            torch.tensor([[advantage]]),
            torch.ones(1, 4),
        )
        assert torch.allclose(sequence_ratio_loss(tokens), torch.full((1, 4), expected), atol=1e-4)
