"""Chebyshev and Fourier series: values, derivatives, and the fit of closed curves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.masks.sample_masks import KINDS, ellipse, star
from vlm_grpo.masks.contours import extract_contours, resample
from vlm_grpo.masks.curves import Series


@pytest.mark.parametrize("terms", [3, 8, 9])
def test_chebyshev_values_and_derivatives_are_numpys(terms: int):
    t = np.linspace(-1, 1, 41)
    series = Series("chebyshev", terms)
    values = series.values(t)
    assert np.allclose(values, np.polynomial.chebyshev.chebvander(t, terms - 1))
    for derivative, order in zip(series.derivatives(t, values), (1, 2), strict=True):
        for k in range(terms):
            exact = np.polynomial.chebyshev.Chebyshev.basis(k).deriv(order)(t)
            assert np.allclose(derivative[:, k], exact)


@pytest.mark.parametrize("terms", [3, 8, 9])
def test_fourier_values_and_derivatives(terms: int):
    t = np.linspace(-1, 1, 41)
    series = Series("fourier", terms)
    values = series.values(t)
    expected = [np.ones_like(t)]
    for k in range(1, 6):
        expected += [np.cos(np.pi * k * t), np.sin(np.pi * k * t)]
    assert np.allclose(values, np.stack(expected[:terms], axis=1))
    first, second = series.derivatives(t, values)
    assert np.allclose(np.gradient(values, t, axis=0)[2:-2], first[2:-2], atol=0.35 * terms)
    step = 1e-5
    assert np.allclose(first, (series.values(t + step) - series.values(t - step)) / (2 * step), atol=1e-5)
    moved = series.derivatives(t + step, series.values(t + step))[0] - first
    assert np.allclose(second, moved / step, atol=1e-2 * terms**3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [3, 8, 13])
def test_a_fitted_curve_is_closed(kind: str, terms: int):
    series = Series(kind, terms)
    rows = series.fit(extract_contours(star(5, 20))[0])
    first, last = series.values(np.array([-1.0, 1.0])) @ rows
    assert np.allclose(first, last, atol=1e-9)
    if kind == "chebyshev":
        assert np.abs(rows[1::2].sum(axis=0)).max() < 1e-9  # a1 + a3 + ... = 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_of_the_series_is_fitted_by_itself(kind: str):
    """A pixel beside an ellipse of 110 by 60, which is no such curve; a quarter when its own curve is fitted again."""
    series = Series(kind, 8)
    points = extract_contours(ellipse(75, 60, 55, 30, 0.4))[0]
    for largest in (1.0, 0.3):
        curve = series.values(np.linspace(-1, 1, 4000)) @ series.fit(points)
        gap = np.hypot(*(points[:, None] - curve[None]).transpose(2, 0, 1)).min(axis=1)
        assert gap.max() < largest
        points = resample(curve[:-1])


@pytest.mark.parametrize(("kind", "gain"), [("chebyshev", 0.9), ("fourier", 0.9)])
def test_parameter_correction_lowers_the_residual(kind: str, gain: float):
    series = Series(kind, 8)
    points = extract_contours(star(4, 25))[0]
    closed = np.concatenate([points, points[:1]])
    t = np.linspace(-1, 1, 257)
    plain = series._solve(series.values(t), closed)

    def off(rows: np.ndarray) -> float:
        """Mean squared distance of the outline from the curve."""
        curve = series.values(np.linspace(-1, 1, 2000)) @ rows
        return float(((points[:, None] - curve[None]) ** 2).sum(axis=2).min(axis=1).mean())

    assert off(series.fit(points)) < gain * off(plain)
