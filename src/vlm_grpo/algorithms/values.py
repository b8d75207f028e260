"""Credit for single tokens: rewards of tokens, returns, advantages from a value model, and its loss.

All tensors are (B, C), one row for each completion, with `mask` 1 where the model chose the token. What it did not
choose, a tool's answer or padding, is stepped over: value and advantage of the next chosen token are carried across it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_SPREAD = 1e-6
ESTIMATORS = ("k1", "k2", "k3")
VALUE_MODELS = SHARED, OWN = ("shared", "own")  # a head on the policy's last hidden states, or on a model of its own


class Credit(NamedTuple):
    """(B, C) advantages, not yet whitened, and (B, C) returns that the values are trained towards."""

    advantages: Tensor
    returns: Tensor


def kl_of_tokens(logps: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """An estimate of KL(policy || reference) at each token that the policy sampled.

    With d = log p - log p_ref: k1 is d, unbiased and of either sign; k2 is d^2 / 2, biased, never negative; k3 is
    exp(-d) - 1 + d, unbiased and never negative (Schulman, "Approximating KL Divergence", 2020).

    Raises:
        ValueError: there is no such estimator.
    """
    difference = logps - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return (-difference).exp() - 1 + difference
    raise ValueError(f"--kl_estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")


def token_rewards(rewards: Tensor, mask: Tensor, penalties: Tensor | None = None) -> Tensor:
    """Each completion's reward, (B,), at its last chosen token, minus the tokens' own (B, C) penalties.

    A completion without a chosen token earns nothing.
    """
    chosen = mask.bool()
    is_last = chosen & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
    found = torch.where(is_last, rewards[:, None], torch.zeros_like(rewards)[:, None])  # (B, C)
    return found if penalties is None else found - penalties.masked_fill(~chosen, 0.0)


def rewards_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """The sum of a token's reward and of those after it; 0 where no token was chosen."""
    return rewards.flip(1).cumsum(dim=1).flip(1).masked_fill(mask == 0, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """The values with mean 0 and standard deviation 1 (ddof 1) over all chosen tokens that are known.

    0 where there is no token, where the value is NaN, and everywhere if the values do not differ.
    """
    known = mask.bool() & ~values.isnan()
    filled = values.masked_fill(~known, 0.0)
    count = known.sum()
    centred = (filled - filled.sum() / count.clamp(min=1)).masked_fill(~known, 0.0)
    deviation = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return centred / deviation if deviation > NO_SPREAD else torch.zeros_like(filled)


def reinforce_pp_advantages(rewards: Tensor, mask: Tensor) -> Tensor:
    """Rewards to go of tokens, normalised over all tokens of the rollout: REINFORCE++ (arXiv:2501.03262)."""
    return whiten(rewards_to_go(rewards, mask), mask)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Credit:
    """Generalised advantage estimation (arXiv:1506.02438, equation 16) from the rewards and values of tokens.

    delta_t = r_t + gamma V_next - V_t; A_t = delta_t + gamma lam A_next; return_t = A_t + V_t, with `next` the next
    chosen token and 0 after the last one.
    """
    chosen = mask.bool()
    advantages = torch.zeros_like(values)
    value, advantage = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])  # of the next chosen token, (B,)
    for place in reversed(range(values.size(1))):
        here = chosen[:, place]
        delta = rewards[:, place] + gamma * value - values[:, place]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        value = torch.where(here, values[:, place], value)
        advantages[:, place] = advantage
    advantages = advantages.masked_fill(~chosen, 0.0)
    return Credit(advantages, (advantages + values).masked_fill(~chosen, 0.0))


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, *, value_clip: float = 0.2, value_coef: float = 0.5
) -> Tensor:
    """`value_coef` times half the squared error of each token's value; its move from the old value is clipped.

    max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, as PPO's authors implemented it for arXiv:1707.06347.
    """
    near = torch.clamp(values, old - value_clip, old + value_clip)
    return value_coef * 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the chosen tokens: 1 for exact values, 0 for constant ones; NaN if R is constant."""
    known = mask.bool() & ~returns.isnan()
    left, whole = (returns - values)[known].double(), returns[known].double()
    if len(whole) < 2 or whole.var() <= NO_SPREAD**2:
        return float("nan")
    return (1 - left.var() / whole.var()).item()


def adaptive_kl_update(coefficient: float, kl: float, target: float, completions: int, horizon: int = 10_000) -> float:
    """The coefficient after a rollout: up by at most a fifth of `completions` / `horizon` where the KL is too high.

    beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon), the controller of arXiv:1909.08593, section 2.2, with the
    step taken for all n completions of a rollout at once.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * completions / horizon)
