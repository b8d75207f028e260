"""GAE, the value loss and the explained variance against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_grpo.algorithms.ppo import clipped_value_loss, explained_variance, gae
from vlm_grpo.algorithms.token_rewards import token_rewards, whiten


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
    found = clipped_value_loss(row(0.9, 0.2, 1.4), VALUES, ONES, value_clip=0.2, value_coef=1.0)
    assert close(found, 0.045, 0.32, 0.08) and found.mean().item() == pytest.approx(0.1483, abs=5e-5)
    assert torch.allclose(clipped_value_loss(row(0.9, 0.2, 1.4), VALUES, ONES), found / 2)


def test_explained_variance():
    """R = 0, 1, 2 with variance 1; R - V = 0, .5, 1 with variance .25."""
    returns = row(0.0, 1.0, 2.0)
    assert explained_variance(row(0.0, 0.5, 1.0), returns, ONES) == pytest.approx(0.75)
    assert explained_variance(returns, returns, ONES) == 1
    assert explained_variance(row(3.0, 3.0, 3.0), returns, ONES) == 0
    assert math.isnan(explained_variance(returns, ONES, ONES))
    assert explained_variance(row(0.0, 9.0, 1.0), row(0.0, 5.0, 1.0), row(1.0, 0.0, 1.0)) == 1
