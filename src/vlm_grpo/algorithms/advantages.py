"""Advantages from the rewards of a whole rollout, all processes together: (P, G) rewards in, (P, G) advantages out.

A reward that applied to no reward function is NaN: it counts nowhere, and its advantage is NaN, which the trainer makes
0. `lengths` are the tokens of each completion, (P, G).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # what TRL adds to a spread
NO_SPREAD = 1e-6


def mean_over_group(rewards: Tensor) -> Tensor:
    """(P, 1)"""
    return rewards.nanmean(dim=1, keepdim=True)


def nanstd(values: Tensor) -> Tensor:
    """The standard deviation (ddof 1) of each row's values that are not NaN, (P, 1); 0 for fewer than two."""
    centred = values - values.nanmean(dim=1, keepdim=True)
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    return (centred.square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def grpo(rewards: Tensor) -> Tensor:
    """Reward minus the group's mean, over its spread (arXiv:2402.03300)."""
    return (rewards - mean_over_group(rewards)) / (nanstd(rewards) + EPSILON)


def dr_grpo(rewards: Tensor) -> Tensor:
    """Reward minus the group's mean, without dividing by the spread (arXiv:2503.20783).

    Dividing up-weights groups that are almost always right or wrong.
    """
    return rewards - mean_over_group(rewards)


def rloo(rewards: Tensor) -> Tensor:
    """Reward minus the mean of the other completions, G / (G - 1) of `dr_grpo` (arXiv:2402.14740)."""
    count = (~rewards.isnan()).sum(dim=1, keepdim=True)
    return dr_grpo(rewards) * count / (count - 1).clamp(min=1)


def opo(rewards: Tensor, *, lengths: Tensor) -> Tensor:
    """Reward minus the mean weighted by length, the baseline of least variance (arXiv:2505.23585).

    It holds for updates that are exactly on-policy.
    """
    weights = torch.where(rewards.isnan(), 0, lengths).to(rewards)
    total = weights.sum(dim=1, keepdim=True)
    baseline = (weights * rewards).nansum(dim=1, keepdim=True) / total.clamp(min=1)
    return rewards - baseline


def remax(rewards: Tensor, *, greedy: Tensor) -> Tensor:
    """Reward minus that of the prompt's greedy completion, `greedy` (P,) (arXiv:2310.10505)."""
    return rewards - greedy[:, None]


def gpg(rewards: Tensor) -> Tensor:
    """`dr_grpo` times groups / groups whose rewards vary (arXiv:2504.02546): the others give no gradient."""
    varies = nanstd(rewards) > NO_SPREAD
    return dr_grpo(rewards) * len(rewards) / varies.sum().clamp(min=1)


def grpo_passk(rewards: Tensor) -> Tensor:
    """The best completion earns its distance to the second best, all others 0 (arXiv:2503.19595); 0 for a tie."""
    known = rewards.nan_to_num(nan=-torch.inf)
    if rewards.size(1) < 2:
        return torch.zeros_like(rewards)
    best = known.topk(2, dim=1)
    gap = (best.values[:, :1] - best.values[:, 1:]).nan_to_num(nan=0.0, posinf=0.0)
    return torch.zeros_like(rewards).scatter(1, best.indices[:, :1], gap)


def reinforce_plus_plus(rewards: Tensor, *, lengths: Tensor) -> Tensor:
    """Rewards normalised over all tokens of the rollout, of all prompts (arXiv:2501.03262)."""
    return over_tokens(rewards, lengths)


def reinforce_plus_plus_baseline(rewards: Tensor, *, lengths: Tensor) -> Tensor:
    """Reward minus the group's mean, over the spread of these differences over all tokens (arXiv:2501.03262)."""
    return over_tokens(dr_grpo(rewards), lengths)


def over_tokens(values: Tensor, lengths: Tensor) -> Tensor:
    """The values with mean 0 and standard deviation 1 (ddof 1) over all tokens, each with its completion's value."""
    weights = torch.where(values.isnan(), 0, lengths).to(values)
    count = weights.sum()
    centred = values - (weights * values).nansum() / count.clamp(min=1)
    deviation = ((weights * centred.square()).nansum() / (count - 1).clamp(min=1)).sqrt()
    return centred / deviation if deviation > NO_SPREAD else torch.zeros_like(values) + 0.0 * centred
