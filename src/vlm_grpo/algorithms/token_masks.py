"""Tokens chosen by their covariance, of the whole rollout at once: so the choice does not depend on micro-batches.

All tensors are (B, C), with the rows of all processes in their order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def covariances(advantages: Tensor, logps: Tensor, mask: Tensor) -> Tensor:
    """(A - mean A)(log p - mean log p) of each token, with means over the scored tokens (arXiv:2505.22617)."""
    count = mask.sum().clamp(min=1)
    centred = [values - (values * mask).sum() / count for values in (advantages.expand_as(logps), logps)]
    return centred[0] * centred[1]


def clip_cov_mask(
    values: Tensor, mask: Tensor, seed: int, *, share: float = 2e-4, low: float = 1.0, high: float = 5.0
) -> Tensor:
    """True for a random `share` of all scored tokens (at least one), drawn among those between `low` and `high`."""
    places = ((values >= low) & (values <= high) & mask.bool()).flatten().nonzero().flatten()
    wanted = min(len(places), max(1, int(share * mask.sum().item())))
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:wanted]
    return _marked(places[order.to(places.device)], values)


def kl_cov_mask(values: Tensor, mask: Tensor, *, share: float = 2e-3) -> Tensor:
    """True for the `share` of all scored tokens (at least one) with the largest values; the first ones of equals."""
    wanted = min(int(mask.sum().item()), max(1, int(share * mask.sum().item())))
    ranked = values.masked_fill(mask == 0, -torch.inf).flatten().sort(descending=True, stable=True).indices
    return _marked(ranked[:wanted], values)


def _marked(places: Tensor, like: Tensor) -> Tensor:
    marks = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    marks[places] = True
    return marks.view_as(like)
