"""Estimators of the KL and the adaptive coefficient against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from tests.algorithms.test_ppo import row
from vlm_grpo.algorithms.kl_controller import adaptive_kl_update, kl_of_tokens


@pytest.mark.parametrize(("name", "expected"), [("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 1.5)])
def test_kl_estimators(name: str, expected: float):
    assert kl_of_tokens(row(-1.5), row(-1.0), name).item() == pytest.approx(expected)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="--kl_estimator must be one of k1, k2, k3, got 'k4'"):
        kl_of_tokens(row(0.0), row(0.0), "k4")


def test_the_expectation_of_k1_and_k3_is_the_kl():
    """KL of (.7, .2, .1) from (.5, .25, .25)."""
    p, q = row(0.7, 0.2, 0.1).double(), row(0.5, 0.25, 0.25).double()
    exact = (p * (p / q).log()).sum().item()
    for name in ("k1", "k3"):
        assert (p * kl_of_tokens(p.log(), q.log(), name)).sum().item() == pytest.approx(exact)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.1, 0.05), (0.11, 0.05 * 1.001), (0.3, 0.05 * 1.002), (0.09, 0.05 * 0.999), (-1.0, 0.05 * 0.998)],
)
def test_the_coefficient_follows_the_kl(kl: float, expected: float):
    """Target 0.1, horizon 10,000, 100 completions: a relative error e, at most 0.2, moves it by e / 100."""
    assert adaptive_kl_update(0.05, kl, 0.1, 100) == pytest.approx(expected)
