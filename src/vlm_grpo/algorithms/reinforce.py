"""REINFORCE++ (arXiv:2501.03262): advantages normalized over all tokens of the rollout instead of within groups."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import Advantages, Algorithm, ScoredRollout
from vlm_grpo.algorithms.group import NO_SPREAD, dr_grpo
from vlm_grpo.algorithms.token_rewards import rewards_to_go, token_rewards, whiten


class ReinforcePlusPlus(Algorithm):
    """REINFORCE++; with a KL penalty in the reward, each token has an advantage of its own."""

    def advantages(self, rollout: ScoredRollout) -> Advantages | None:
        """Return the normalized rewards, or the normalized returns of tokens if these have KL penalties."""
        if rollout.penalties is None:
            return super().advantages(rollout)
        mask = rollout.batch.loss_mask
        local = token_rewards(self.ranks.local_rows(rollout.totals, len(mask)), mask, rollout.penalties)
        rewards, everywhere = self.ranks.gather_padded(local, mask)
        return Advantages(token_returns(rewards, everywhere), everywhere)


def reinforce_plus_plus(rewards: Tensor, *, lengths: Tensor) -> Tensor:
    """Return (P, G) rewards normalized over all tokens of the rollout, of all prompts (arXiv:2501.03262)."""
    return whiten_over_tokens(rewards, lengths)


def reinforce_plus_plus_baseline(rewards: Tensor, *, lengths: Tensor) -> Tensor:
    """Return reward minus the group mean, divided by the token-weighted std of these differences (arXiv:2501.03262)."""
    return whiten_over_tokens(dr_grpo(rewards), lengths)


def token_returns(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return the (B, C) rewards to go of tokens, normalized over all tokens of the rollout (arXiv:2501.03262)."""
    return whiten(rewards_to_go(rewards, mask), mask)


def whiten_over_tokens(values: Tensor, lengths: Tensor) -> Tensor:
    """Return values normalized to mean 0 and std 1 (ddof 1), each counted once per token of its completion."""
    weights = torch.where(values.isnan(), 0, lengths).to(values)
    count = weights.sum()
    centered = values - (weights * values).nansum() / count.clamp(min=1)
    deviation = ((weights * centered.square()).nansum() / (count - 1).clamp(min=1)).sqrt()
    return centered / deviation if deviation > NO_SPREAD else torch.zeros_like(values) + 0.0 * centered
