"""Weights that correct for a sampler whose log-probabilities differ from the policy's, as TRL has them for vLLM."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_grpo.rollouts.ranks import Ranks

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def importance_ratio(
    policy: Tensor, sampler: Tensor, mask: Tensor, mode: str, low: float | None, high: float | None
) -> Tensor:
    """Return the policy's over the sampler's probability of tokens (B, C), or of whole completions (B, 1).

    Args:
        policy: (B, C) log-probabilities under the policy.
        sampler: (B, C) of the sampler; NaN where it gave none, which counts as equal.
        mask: (B, C), 1 at tokens that count.
        mode: one of MODES: a ratio outside of the bounds is clipped (truncate) or made 0 (mask).
        low: least ratio; None has no bound.
        high: largest ratio; None has no bound.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"--vllm_importance_sampling_mode must be one of {', '.join(MODES)}, got {mode!r}")
    difference = ((policy - sampler) * mask).nan_to_num(nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(dim=1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(min=low, max=high) if low is not None or high is not None else ratio
    is_outside = torch.zeros_like(ratio, dtype=torch.bool)
    if low is not None:
        is_outside |= ratio < low
    if high is not None:
        is_outside |= ratio > high
    return ratio.masked_fill(is_outside, 0.0)


def sampler_metrics(policy: Tensor, sampler: Tensor, ratio: Tensor, mask: Tensor, ranks: Ranks) -> dict[str, float]:
    """Return how far the sampler is from the policy over all processes: differences of tokens, and the ratios."""
    differences = (policy - sampler).abs()[mask.bool()]
    differences = differences[~differences.isnan()]
    ratios = ratio[mask.bool()] if ratio.shape == mask.shape else ratio.flatten()
    local = torch.stack([*_statistics(differences), *_statistics(ratios)])
    everywhere = ranks.gather(local[None])  # (processes, 6): least, mean and largest of both
    least, mean, largest = everywhere.min(dim=0).values, everywhere.mean(dim=0), everywhere.max(dim=0).values
    return {
        "sampling/sampling_logp_difference/mean": mean[1].item(),
        "sampling/sampling_logp_difference/max": largest[2].item(),
        "sampling/importance_sampling_ratio/min": least[3].item(),
        "sampling/importance_sampling_ratio/mean": mean[4].item(),
        "sampling/importance_sampling_ratio/max": largest[5].item(),
    }


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least, the mean and the largest value; 0 where there is none."""
    if not values.numel():
        return values.new_zeros(()), values.new_zeros(()), values.new_zeros(())
    return values.min(), values.mean(), values.max()
