"""Sampling parameters of an evaluation, and pass@k. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

# Graded rewards, for which pass@k would need a threshold.
GRADED = (
    "reward",
    "iou",
    "iou^2",
    "giou",
    "mask_iou",
    "reasoning",
    "reasoning_overlap",
    "detection",
    "ovd",
    "od_ap",
    "od_ap50",
)


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters: temperature 0 is greedy; `num_samples` completions per row come from the `top_p` nucleus.

    Raises:
        ValueError: values are out of range, or options would have no effect.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"--temperature must be 0 (greedy) or above, got {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p must be above 0 and at most 1, got {self.top_p:g}")
        if self.num_samples < 1:
            raise ValueError(f"--num_samples must be at least 1, got {self.num_samples}")
        if self.is_greedy and self.top_p < 1:
            raise ValueError(f"--top_p {self.top_p:g} needs --temperature above 0: greedy decoding ignores it")
        if self.is_greedy and self.num_samples > 1:
            raise ValueError(
                f"--num_samples {self.num_samples} needs --temperature above 0: all greedy completions are equal"
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def seed_of(self, row: int, sample: int, turn: int = 0) -> int:
        """Return the seed of one completion, 0 to 2^31 - 1, independent of batch and rank."""
        text = f"{self.seed}/{row}/{sample}" + (f"/{turn}" if turn else "")
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") >> 1


def check_pass_k(pass_k: Sequence[int], num_samples: int, metric: str) -> None:
    """Check that pass@k can be computed.

    Raises:
        ValueError: k is below 1 or above the number of samples, or the task's metric is graded.
    """
    for k in pass_k:
        if k < 1:
            raise ValueError(f"--pass_k must be at least 1, got {k}")
        if k > num_samples:
            raise ValueError(f"--pass_k {k} needs --num_samples {k} or more, got {num_samples}")
    if pass_k and metric in GRADED:
        raise ValueError(f"--pass_k needs a metric of 0 or 1, but the task's metric {metric!r} is graded")


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k: 1 - C(n-c, k) / C(n, k).

    arXiv:2107.03374, equation 1.

    Args:
        samples: n, the number of samples; at least k.
        right: c, the number of correct samples.
    """
    return 1 - comb(samples - correct, k) / comb(samples, k)
