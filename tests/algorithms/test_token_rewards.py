"""Rewards and returns of tokens against numbers worked out by hand."""

from __future__ import annotations

import math

import torch

from tests.algorithms.test_ppo import ONES, close, row
from vlm_grpo.algorithms.reinforce import token_returns
from vlm_grpo.algorithms.token_rewards import rewards_to_go, token_rewards, whiten


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
    found = token_returns(token_rewards(torch.tensor([1.0, 0.2, 0.5, 0.0]), mask), mask)
    expected = torch.tensor([1.4330, -0.4567, 0.2519, -0.9291])[:, None] * mask
    assert torch.allclose(found, expected, atol=5e-5)


def test_a_completion_without_a_reward_counts_nowhere():
    mask = torch.ones(3, 2)
    values = torch.tensor([[1.0, 1.0], [math.nan, math.nan], [0.0, 0.0]])
    high = 0.5 / math.sqrt(1 / 3)
    assert torch.allclose(whiten(values, mask), torch.tensor([[high] * 2, [0.0] * 2, [-high] * 2]))
    assert whiten(torch.ones(2, 2), torch.ones(2, 2)).abs().max() == 0
    assert whiten(torch.ones(2, 2), torch.zeros(2, 2)).abs().max() == 0
