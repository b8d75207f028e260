"""Rewards of single tokens, their sums, and normalization over tokens, for REINFORCE++ and PPO.

All tensors are (B, C), one row for each completion; the mask is 1 at the tokens that the policy generated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_grpo.algorithms.group import NO_SPREAD


def token_rewards(rewards: Tensor, mask: Tensor, penalties: Tensor | None = None) -> Tensor:
    """Return the (B,) reward of each completion at its last policy token, minus the (B, C) penalties of tokens.

    A completion without a policy token has no reward.
    """
    is_policy = mask.bool()
    is_last = is_policy & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
    values = torch.where(is_last, rewards[:, None], torch.zeros_like(rewards)[:, None])  # (B, C)
    return values if penalties is None else values - penalties.masked_fill(~is_policy, 0.0)


def rewards_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the reward of each token and of those after it; 0 where the mask is 0."""
    return rewards.flip(1).cumsum(dim=1).flip(1).masked_fill(mask == 0, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values normalized to mean 0 and standard deviation 1 (ddof 1) over all tokens of the mask.

    NaN is left out. The result is 0 where the mask is 0 or the value is NaN, and everywhere if all values are equal.
    """
    known = mask.bool() & ~values.isnan()
    filled = values.masked_fill(~known, 0.0)
    count = known.sum()
    centred = (filled - filled.sum() / count.clamp(min=1)).masked_fill(~known, 0.0)
    deviation = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return centred / deviation if deviation > NO_SPREAD else torch.zeros_like(filled)
