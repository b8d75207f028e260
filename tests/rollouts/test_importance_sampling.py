"""Ratios of policy and sampler, worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from vlm_grpo.rollouts.importance_sampling import DifferenceCheck, difference_metrics, importance_ratio, ratio_metrics

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
    differences = difference_metrics(POLICY, SAMPLER, MASK, ONE_PROCESS)
    assert {**differences, **ratio_metrics(ratio, MASK, ONE_PROCESS)} == {
        "sampling/sampling_logp_difference/mean": pytest.approx(math.log(2)),
        "sampling/sampling_logp_difference/max": pytest.approx(math.log(2)),
        "sampling/importance_sampling_ratio/min": pytest.approx(0.5),
        "sampling/importance_sampling_ratio/mean": pytest.approx(3.5 / 3),
        "sampling/importance_sampling_ratio/max": pytest.approx(2.0),
    }


@pytest.mark.parametrize(("dtype", "usual", "far"), [(torch.float32, 5e-4, 0.01), (torch.bfloat16, 0.05, 0.2)])
def test_a_difference_out_of_range_is_a_warning_with_its_causes(
    dtype: torch.dtype, usual: float, far: float, caplog: pytest.LogCaptureFixture
):
    check = DifferenceCheck(dtype, every=10)
    check(usual, step=0)
    assert not caplog.records
    for step in range(1, 15):
        check(far, step)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["step 1", "step 11"]
    assert "other pixel limits" in caplog.records[0].getMessage()
