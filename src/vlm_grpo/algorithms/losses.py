"""Losses that TRL does not have, for each token: log-probabilities and advantages in, (B, C) losses out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """The tokens of a micro-batch.

    Attributes:
        logps: (B, C) log-probabilities under the policy, with their gradient.
        old: (B, C) log-probabilities when they were sampled.
        advantages: (B, C) or (B, 1).
        mask: (B, C), 1 where a token is scored.
        marks: further (B, C) or (B, 1) tensors of the rollout, such as the tokens that an algorithm chose.
        entropies: (B, C), of the policy at each token, without gradient; None where nobody computed them.
    """

    logps: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    entropies: Tensor | None = None


def gmpo(tokens: LossInputs, *, gmpo_clip: float = 0.4) -> Tensor:
    """-A w, with w the geometric mean of a completion's token ratios (arXiv:2507.20673).

    Each log-ratio is clipped on the one side where it would make the step larger: at +`gmpo_clip` for A > 0, at
    -`gmpo_clip` for A < 0.
    """
    sign = torch.where(tokens.advantages >= 0, 1.0, -1.0)
    ratios = sign * torch.clamp(sign * (tokens.logps - tokens.old), max=gmpo_clip)
    count = tokens.mask.sum(dim=1, keepdim=True).clamp(min=1)
    weight = ((ratios * tokens.mask).sum(dim=1, keepdim=True) / count).exp()  # (B, 1)
    return (-tokens.advantages * weight).expand_as(tokens.logps)


def whole_completion(tokens: LossInputs, *, clip: float = 0.2) -> Tensor:
    """The clipped ratio of whole completions, exp of the sum of log-ratios: RLOO's single action (arXiv:2402.14740)."""
    ratio = ((tokens.logps - tokens.old) * tokens.mask).sum(dim=1, keepdim=True).exp()  # (B, 1)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.min(ratio * tokens.advantages, clipped * tokens.advantages).expand_as(tokens.logps)


def kl_cov(tokens: LossInputs, *, kl_cov_coef: float = 1.0) -> Tensor:
    """-A w without clipping, and |log w| times a coefficient for the tokens that `highest` chose (arXiv:2505.22617)."""
    log_ratio = tokens.logps - tokens.old
    loss = -tokens.advantages * log_ratio.exp()
    return loss + kl_cov_coef * log_ratio.abs() * tokens.marks["chosen"]
