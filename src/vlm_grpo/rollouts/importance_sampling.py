"""Weights that correct for a sampler whose log-probabilities differ from the policy's, as TRL has them for vLLM."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from vlm_grpo.rollouts.ranks import Ranks

logger = logging.getLogger(__name__)

MEAN_DIFFERENCE = "sampling/sampling_logp_difference/mean"
# Means that engines with the same weights stay below; kernels and the order of sums differ.
USUAL_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
CAUSES = (
    "the engine has other weights (a server that was restarted or that another run uses, too), other pixel limits or "
    "another processor than the run, another precision (--dtype, quantization), samples with --top_p, --top_k, --min_p "
    "or a penalty, which the trainer's log-probabilities do not know, or computes this model in another way: docs/"
    "engines.md lists what agrees for each family"
)
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


def difference_metrics(policy: Tensor, sampler: Tensor, mask: Tensor, ranks: Ranks) -> dict[str, float]:
    """Return how far the sampler's log-probabilities of tokens are from the policy's, over all processes."""
    differences = (policy - sampler).abs()[mask.bool()]
    _, mean, largest = _over_ranks(differences[~differences.isnan()], ranks)
    return {MEAN_DIFFERENCE: mean, "sampling/sampling_logp_difference/max": largest}


def ratio_metrics(ratio: Tensor, mask: Tensor, ranks: Ranks) -> dict[str, float]:
    """Return the least, the mean and the largest ratio over all processes."""
    ratios = ratio[mask.bool()] if ratio.shape == mask.shape else ratio.flatten()
    names = (f"sampling/importance_sampling_ratio/{name}" for name in ("min", "mean", "max"))
    return dict(zip(names, _over_ranks(ratios, ranks), strict=True))


def _over_ranks(values: Tensor, ranks: Ranks) -> tuple[float, float, float]:
    """Return the least, the mean and the largest value of all processes; the mean is that of the processes' means."""
    everywhere = ranks.gather(torch.stack(_statistics(values))[None])  # (processes, 3)
    least, mean, largest = everywhere.unbind(dim=1)
    return least.min().item(), mean.mean().item(), largest.max().item()


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least, the mean and the largest value; 0 where there is none."""
    if not values.numel():
        return values.new_zeros(()), values.new_zeros(()), values.new_zeros(())
    return values.min(), values.mean(), values.max()


class DifferenceCheck:
    """Warns where an engine's log-probabilities leave the range in which those of the same weights are.

    Args:
        dtype: in which engine and policy compute.
        every: steps between two warnings.
    """

    def __init__(self, dtype: torch.dtype, every: int = 100) -> None:
        self.limit, self.every = USUAL_DIFFERENCE.get(dtype, 0.1), every
        self._warned_at: int | None = None

    def __call__(self, mean: float, step: int) -> None:
        """Look at the mean difference of a step."""
        is_due = self._warned_at is None or step - self._warned_at >= self.every
        if mean > self.limit and is_due:
            self._warned_at = step
            logger.warning(
                "step %d: the engine's log-probabilities are off by %.3g a token in the mean (usual: below %.3g). %s",
                *(step, mean, self.limit, f"Usual causes: {CAUSES}."),
            )
