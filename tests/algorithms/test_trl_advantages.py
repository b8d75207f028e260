"""TRL's advantages, worked by hand: two prompts with three completions, one without a reward."""

from __future__ import annotations

import pytest
import torch

from vlm_grpo.algorithms.trl_advantages import grpo_advantages, normalized_advantages, rloo_advantages, weighted_sum

NAN = float("nan")
# Means 1 and 3 (of two), spreads 1 and 1.4142.
TOTALS = torch.tensor([0.0, 1.0, 2.0, 2.0, 4.0, NAN])


def test_weighted_sum_leaves_rewards_out_that_do_not_apply():
    rewards = torch.tensor([[1.0, 2.0], [NAN, 2.0], [NAN, NAN]])
    assert weighted_sum(rewards, torch.tensor([1.0, 0.5])).nan_to_num(nan=-1).tolist() == [2.0, 1.0, -1.0]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [-1.0, 0.0, 1.0, -1.0, 1.0, 0.0]),
        ("group", [-1 / 1.0001, 0.0, 1 / 1.0001, -1 / 1.41431356, 1 / 1.41431356, 0.0]),
        # The known rewards 0 1 2 2 4 have mean 1.8 and variance 8.8 / 4.
        ("batch", [value / (2.2**0.5 + 1e-4) for value in (-1.0, 0.0, 1.0, -1.0, 1.0, 0.0)]),
    ],
)
def test_grpo_centers_groups_and_scales(scale: str, expected: list[float]):
    found = grpo_advantages(TOTALS, 3, scale)
    assert found.values.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.is_std_zero.tolist() == [False] * 6


def test_grpo_refuses_an_unknown_scale():
    with pytest.raises(ValueError, match="--scale_rewards must be one of group, batch, none, got 'rows'"):
        grpo_advantages(TOTALS, 3, "rows")


def test_equal_rewards_have_no_spread():
    assert (
        grpo_advantages(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2, "group").is_std_zero.tolist()
        == [True, True] + [False] * 2
    )


def test_groups_without_two_rewards_are_not_counted_as_equal():
    assert grpo_advantages(torch.tensor([1.0, NAN, NAN, NAN]), 2, "group").is_std_zero.tolist() == [False] * 4


def test_normalized_advantages_give_each_reward_the_same_weight():
    """Both rewards vary by one standard deviation within the group, whatever their size: the sum is 2 z, then z."""
    rewards = torch.tensor([[0.0, 0.0], [1.0, 100.0]])
    z = 0.5**0.5  # 0.5 over a spread of 0.7071
    values = normalized_advantages(rewards, torch.ones(2), 2).values
    assert values.tolist() == pytest.approx([-z, z], abs=1e-3)


def test_rloo_compares_with_the_others():
    found = rloo_advantages(TOTALS, 3)
    assert found.values.tolist() == pytest.approx([-1.5, 0.0, 1.5, -2.0, 2.0, 0.0])


def test_rloo_clips_rewards_before_the_penalty():
    found = rloo_advantages(torch.tensor([0.0, 9.0]), 2, clip_range=(0.0, 1.0), penalties=torch.tensor([0.5, 0.0]))
    assert found.values.tolist() == pytest.approx([-1.5, 1.5])  # 0 - 0.5 against 1


def test_rloo_normalizes_over_all_completions():
    values = rloo_advantages(torch.tensor([0.0, 1.0, 0.0, 3.0]), 2, is_normalized=True).values  # -1 1 -3 3
    assert values.tolist() == pytest.approx([value / (20 / 3) ** 0.5 for value in (-1.0, 1.0, -3.0, 3.0)], abs=1e-4)


def test_one_completion_per_prompt_has_no_advantage():
    assert rloo_advantages(torch.tensor([1.0, 2.0]), 1).values.tolist() == [0.0, 0.0]
    assert grpo_advantages(torch.tensor([1.0, 2.0]), 1, "group").is_std_zero.tolist() == [True, True]
