"""Ratios of policy and sampler, worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from vlm_grpo.rollouts.importance_sampling import importance_ratio, sampler_metrics

# Ratios of tokens: 2, 0.5, 1 (no log-probability known); the last token does not count.
POLICY = torch.tensor([[math.log(0.4), math.log(0.1), -1.0, -9.0]])
SAMPLER = torch.tensor([[math.log(0.2), math.log(0.2), float("nan"), 0.0]])
MASK = torch.tensor([[1, 1, 1, 0]])
ONE_PROCESS = SimpleNamespace(gather=lambda values: values)


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", None, None, [2.0, 0.5, 1.0, 1.0]),
        ("token_truncate", 0.8, 1.5, [1.5, 0.8, 1.0, 1.0]),
        ("token_mask", 0.8, None, [2.0, 0.0, 1.0, 1.0]),
        ("token_mask", None, 1.5, [0.0, 0.5, 1.0, 1.0]),
        ("sequence_truncate", None, 0.9, [0.9]),
        ("sequence_mask", None, 0.9, [0.0]),
        ("sequence_mask", 0.9, 1.1, [1.0]),
    ],
)
def test_ratios_outside_of_the_bounds_are_clipped_or_masked(
    mode: str, low: float | None, high: float | None, expected: list[float]
):
    assert importance_ratio(POLICY, SAMPLER, MASK, mode, low, high)[0].tolist() == pytest.approx(expected)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="--vllm_importance_sampling_mode must be one of token_truncate"):
        importance_ratio(POLICY, SAMPLER, MASK, "rows", None, None)


def test_metrics_are_of_the_tokens_that_count():
    ratio = importance_ratio(POLICY, SAMPLER, MASK, "token_truncate", None, None)
    assert sampler_metrics(POLICY, SAMPLER, ratio, MASK, ONE_PROCESS) == {
        "sampling/sampling_logp_difference/mean": pytest.approx(math.log(2)),
        "sampling/sampling_logp_difference/max": pytest.approx(math.log(2)),
        "sampling/importance_sampling_ratio/min": pytest.approx(0.5),
        "sampling/importance_sampling_ratio/mean": pytest.approx(3.5 / 3),
        "sampling/importance_sampling_ratio/max": pytest.approx(2.0),
    }
