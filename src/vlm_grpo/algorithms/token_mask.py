"""Clip-Cov and KL-Cov (arXiv:2505.22617): tokens with a high covariance of advantage and log-probability.

Tokens are selected once per rollout among those of all processes, so that the selection does not depend on
micro-batches. All tensors are (B, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import Algorithm, ScoredRollout
from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.records import required


def covariances(advantages: Tensor, logps: Tensor, mask: Tensor) -> Tensor:
    """Return (A - mean A)(log p - mean log p) of each token, with means over the tokens of the mask."""
    count = mask.sum().clamp(min=1)
    centered = [values - (values * mask).sum() / count for values in (advantages.expand_as(logps), logps)]
    return centered[0] * centered[1]


def clip_cov_mask(
    values: Tensor, mask: Tensor, seed: int, *, share: float = 2e-4, low: float = 1.0, high: float = 5.0
) -> Tensor:
    """Return True for a random `share` of all tokens (at least one), drawn among values from `low` to `high`."""
    places = ((values >= low) & (values <= high) & mask.bool()).flatten().nonzero().flatten()
    count = min(len(places), max(1, int(share * mask.sum().item())))
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]
    return _mask_of(places[order.to(places.device)], values)


def kl_cov_mask(values: Tensor, mask: Tensor, *, share: float = 2e-3) -> Tensor:
    """Return True for the `share` of all tokens (at least one) with the largest values; the first of equal ones."""
    count = min(int(mask.sum().item()), max(1, int(share * mask.sum().item())))
    ranked = values.masked_fill(mask == 0, -torch.inf).flatten().sort(descending=True, stable=True).indices
    return _mask_of(ranked[:count], values)


def _mask_of(places: Tensor, like: Tensor) -> Tensor:
    result = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    result[places] = True
    return result.view_as(like)


def kl_cov_loss(inputs: LossInputs, *, kl_cov_coef: float = 1.0) -> Tensor:
    """Return -A w without clipping, plus |log w| times a coefficient at the selected tokens."""
    log_ratio = inputs.logps - inputs.old_logps
    loss = -inputs.advantages * log_ratio.exp()
    return loss + kl_cov_coef * log_ratio.abs() * required(inputs.token_mask, "the selection of tokens")


class CovarianceAlgorithm(Algorithm):
    """Finds the covariances of the tokens of all processes; a subclass selects among them."""

    needs_old_logps = True

    def select(self, values: Tensor, mask: Tensor, step: int) -> Tensor:
        """Return the mask of the selected tokens."""
        raise NotImplementedError

    def local_selection(self, rollout: ScoredRollout) -> tuple[Tensor, Tensor]:
        """Return the (B, C) advantages of this process's tokens, and which of them are selected."""
        batch, mask = rollout.batch, rollout.batch.loss_mask
        advantages = batch.advantages[:, None].expand_as(mask)
        everywhere = self.ranks.gather_padded(
            advantages, required(rollout.old_logps, "the sampling policy's score") * mask, mask
        )
        selected = self.select(covariances(*everywhere), everywhere[2], rollout.step)
        return advantages, self.ranks.local_rows(selected, len(mask))[:, : mask.size(1)]


class ClipCov(CovarianceAlgorithm):
    """Selected tokens get no gradient: their advantage is 0."""

    option_functions = (clip_cov_mask,)

    def select(self, values: Tensor, mask: Tensor, step: int) -> Tensor:
        """Return a random selection; equal seeds and steps give equal selections."""
        return self.call(clip_cov_mask, values, mask, seed=self.args.seed + step)

    def mask_tokens(self, rollout: ScoredRollout) -> None:
        """Set the advantage of selected tokens to 0."""
        advantages, selected = self.local_selection(rollout)
        rollout.batch.advantages = advantages.masked_fill(selected, 0.0)


class KLCov(CovarianceAlgorithm):
    """Selected tokens are kept close to the old policy."""

    option_functions = (kl_cov_mask, kl_cov_loss)
    skips_zero_advantage = False  # a selected token has a KL term whatever its advantage

    def select(self, values: Tensor, mask: Tensor, step: int) -> Tensor:
        """Return the tokens of the highest covariance."""
        return self.call(kl_cov_mask, values, mask)

    def mask_tokens(self, rollout: ScoredRollout) -> None:
        """Record the selected tokens for the loss."""
        rollout.batch.token_mask = self.local_selection(rollout)[1]

    def token_loss(self, inputs: LossInputs) -> Tensor:
        return self.call(kl_cov_loss, inputs)
