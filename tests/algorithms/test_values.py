"""Credit for single tokens, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_grpo.algorithms.values import (
    adaptive_kl_update,
    explained_variance,
    gae,
    kl_of_tokens,
    reinforce_pp_advantages,
    rewards_to_go,
    token_rewards,
    value_loss,
    whiten,
)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def close(found: Tensor, *expected: float) -> bool:
    return torch.allclose(found, row(*map(float, expected)), atol=5e-5)


ONES = row(1.0, 1.0, 1.0)
REWARDS, VALUES = row(0.0, 0.0, 1.0), row(0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("lam", "expected"), [(1.0, (0.5, 0.4, 0.3)), (0.95, (0.4657, 0.3850, 0.3000)), (0.0, (0.1, 0.1, 0.3))]
)
def test_gae(lam: float, expected: tuple):
    """V_next - V_t is 0.1, 0.1, and at the end r - V = 0.3; lambda 0.95: 0.1 + 0.95 (0.1 + 0.95 0.3) = 0.4657."""
    found = gae(REWARDS, VALUES, ONES, lam=lam)
    assert close(found.advantages, *expected)
    assert torch.allclose(found.returns, found.advantages + VALUES)


def test_gae_discounts():
    """gamma 0.5, lambda 1: 1 - 0.7; 0.35 - 0.6 + 0.5 0.3 = -0.1; 0.3 - 0.5 - 0.5 0.1 = -0.25."""
    assert close(gae(REWARDS, VALUES, ONES, gamma=0.5, lam=1.0).advantages, -0.25, -0.1, 0.3)


def test_advantages_are_whitened_over_tokens():
    assert close(whiten(gae(REWARDS, VALUES, ONES).advantages, ONES), 0.9913, 0.0171, -1.0084)


def test_tokens_of_a_tool_and_padding_change_nothing():
    """The same three tokens with a tool's answer between and padding behind, whatever value stands there."""
    mask = row(1.0, 0.0, 0.0, 1.0, 1.0, 0.0)
    values = row(0.5, 9.0, -9.0, 0.6, 0.7, 5.0)
    rewards = token_rewards(torch.tensor([1.0]), mask)
    found = gae(rewards, values, mask)
    assert rewards.tolist() == [[0, 0, 0, 0, 1, 0]]
    assert close(found.advantages, 0.4657, 0, 0, 0.3850, 0.3000, 0)
    assert close(found.returns, 0.9657, 0, 0, 0.9850, 1.0, 0)
    assert close(whiten(found.advantages, mask), 0.9913, 0, 0, 0.0171, -1.0084, 0)


def test_value_loss_clips_the_move_of_a_value():
    """(V - R)^2 = .01, .64, .16; V moves to .7, .4, .9 at most: .09, .36, .01; the larger ones / 2 have mean .1483."""
    found = value_loss(row(0.9, 0.2, 1.4), VALUES, ONES, value_clip=0.2, value_coef=1.0)
    assert close(found, 0.045, 0.32, 0.08) and found.mean().item() == pytest.approx(0.1483, abs=5e-5)
    assert torch.allclose(value_loss(row(0.9, 0.2, 1.4), VALUES, ONES), found / 2)


def test_returns_with_a_kl_penalty():
    """r = 1 at the end, minus 0.1 times the KL from each token on: 1 - 0.1 (0.1 - 0.2 + 0.3) = 0.98."""
    rewards = token_rewards(torch.tensor([1.0]), ONES, 0.1 * row(0.1, -0.2, 0.3))
    assert close(rewards_to_go(rewards, ONES), 0.98, 0.99, 0.97)


def test_penalties_of_what_was_not_chosen_do_not_count():
    mask = row(1.0, 0.0, 1.0)
    assert close(token_rewards(torch.tensor([1.0]), mask, row(0.1, 7.0, 0.2)), -0.1, 0, 0.8)
    empty = token_rewards(torch.tensor([1.0]), torch.zeros(1, 3), ONES)
    assert close(empty, 0, 0, 0)


def test_returns_are_normalised_over_the_tokens_of_all_completions():
    """Without KL the numbers of `reinforce_plus_plus`: rewards 1, .2, .5, 0 at 4, 2, 3, 6 tokens."""
    mask = (torch.arange(6) < torch.tensor([4, 2, 3, 6])[:, None]).float()
    found = reinforce_pp_advantages(token_rewards(torch.tensor([1.0, 0.2, 0.5, 0.0]), mask), mask)
    expected = torch.tensor([1.4330, -0.4567, 0.2519, -0.9291])[:, None] * mask
    assert torch.allclose(found, expected, atol=5e-5)


def test_a_completion_without_a_reward_counts_nowhere():
    mask = torch.ones(3, 2)
    values = torch.tensor([[1.0, 1.0], [math.nan, math.nan], [0.0, 0.0]])
    high = 0.5 / math.sqrt(1 / 3)
    assert torch.allclose(whiten(values, mask), torch.tensor([[high] * 2, [0.0] * 2, [-high] * 2]))
    assert whiten(torch.ones(2, 2), torch.ones(2, 2)).abs().max() == 0
    assert whiten(torch.ones(2, 2), torch.zeros(2, 2)).abs().max() == 0


@pytest.mark.parametrize(("name", "expected"), [("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 1.5)])
def test_kl_estimators(name: str, expected: float):
    assert kl_of_tokens(row(-1.5), row(-1.0), name).item() == pytest.approx(expected)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="--kl_estimator must be one of k1, k2, k3, got 'k4'"):
        kl_of_tokens(row(0.0), row(0.0), "k4")


def test_the_expectation_of_k1_and_k3_is_the_kl():
    """KL of (.7, .2, .1) from (.5, .25, .25)."""
    p, q = row(0.7, 0.2, 0.1).double(), row(0.5, 0.25, 0.25).double()
    exact = (p * (p / q).log()).sum().item()
    for name in ("k1", "k3"):
        assert (p * kl_of_tokens(p.log(), q.log(), name)).sum().item() == pytest.approx(exact)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.1, 0.05), (0.11, 0.05 * 1.001), (0.3, 0.05 * 1.002), (0.09, 0.05 * 0.999), (-1.0, 0.05 * 0.998)],
)
def test_the_coefficient_follows_the_kl(kl: float, expected: float):
    """Target 0.1, horizon 10,000, 100 completions: a relative error e, at most 0.2, moves it by e / 100."""
    assert adaptive_kl_update(0.05, kl, 0.1, 100) == pytest.approx(expected)


def test_explained_variance():
    """R = 0, 1, 2 with variance 1; R - V = 0, .5, 1 with variance .25."""
    returns = row(0.0, 1.0, 2.0)
    assert explained_variance(row(0.0, 0.5, 1.0), returns, ONES) == pytest.approx(0.75)
    assert explained_variance(returns, returns, ONES) == 1
    assert explained_variance(row(3.0, 3.0, 3.0), returns, ONES) == 0
    assert math.isnan(explained_variance(returns, ONES, ONES))
    assert explained_variance(row(0.0, 9.0, 1.0), row(0.0, 5.0, 1.0), row(1.0, 0.0, 1.0)) == 1
