"""Closed curves x(t), y(t) for t from -1 to 1 as sums of a few terms, and their fit to points.

The fit alternates between least squares and a correction of the points' parameters t (Hoschek, Intrinsic
parametrization for approximation, CAGD 5, 1988), which moves each towards its nearest point on the curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROUNDS = 12  # iterations of parameter correction
STEP, LARGEST_STEP = 0.7, 0.15


@dataclass(frozen=True)
class Series:
    """A basis of `terms` functions on [-1, 1].

    `kind` is `chebyshev` (T_0, T_1, ...) or `fourier` (1, cos pi t, sin pi t, cos 2 pi t, ...).
    """

    kind: str
    terms: int

    def values(self, t: np.ndarray) -> np.ndarray:
        """Return all functions at t, (points, terms)."""
        if self.kind == "chebyshev":
            return np.cos(np.arange(self.terms) * np.arccos(t.clip(-1, 1))[:, None])
        return self._waves(t)[:, : self.terms]

    def derivatives(self, t: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return first and second derivatives of all functions at t, (points, terms) each."""
        if self.kind == "chebyshev":
            return values @ self._slopes, values @ (self._slopes @ self._slopes)
        waves = self._waves(t)
        pulse = np.pi * ((np.arange(waves.shape[1]) + 1) // 2)
        first = np.zeros_like(waves)
        first[:, 1::2], first[:, 2::2] = -pulse[1::2] * waves[:, 2::2], pulse[2::2] * waves[:, 1::2]
        return first[:, : self.terms], (-(pulse**2) * waves)[:, : self.terms]

    def _waves(self, t: np.ndarray) -> np.ndarray:
        """Return 1 and pairs of cosine and sine, (points, an odd number of at least `terms`)."""
        angle = np.pi * t[:, None] * np.arange(1, self.terms // 2 + 1)
        waves = np.ones((len(t), 2 * angle.shape[1] + 1))
        waves[:, 1::2], waves[:, 2::2] = np.cos(angle), np.sin(angle)
        return waves

    @cached_property
    def _slopes(self) -> np.ndarray:
        """Return the matrix of derivatives: column k is T_k' = 2k (T_{k-1} + T_{k-3} + ...), with half of T_0."""
        slopes = np.zeros((self.terms, self.terms))
        for k in range(1, self.terms):
            slopes[k - 1 :: -2, k] = 2 * k
        slopes[0] /= 2
        return slopes

    @cached_property
    def closed(self) -> np.ndarray:
        """Return a basis, (terms, free), of the coefficients of closed curves.

        T_k(1) = 1 and T_k(-1) = (-1)^k, so the odd Chebyshev coefficients sum to 0. A Fourier series is always closed.
        """
        if self.kind == "fourier":
            return np.eye(self.terms)
        odd = (np.arange(self.terms) % 2).astype(float)
        return np.linalg.svd(odd[None])[2][1:].T

    @cached_property
    def even_values(self) -> np.ndarray:
        """Return all functions at 200 evenly spaced t, (200, terms), where curves are evaluated."""
        return self.values(np.linspace(-1, 1, 200))

    def fit(self, points: np.ndarray) -> np.ndarray:
        """Return coefficients, (terms, 2), of the closed curve closest to the points, (N, 2) in order.

        The curve starts and ends near the first point.
        """
        target = np.concatenate([points, points[:1]])
        t = np.linspace(-1, 1, len(target))
        best, least = np.zeros((self.terms, 2)), np.inf
        for turn in range(ROUNDS + 1):
            values = self.values(t)
            coefficients = self._solve(values, target)
            off = values @ coefficients - target
            residual = float((off**2).sum())
            if residual < least:
                best, least = coefficients, residual
            if turn < ROUNDS:
                t = self._corrected(t, values, coefficients, off)
        return best

    def _solve(self, values: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Solve the least-squares problem over closed curves; a small ridge term handles degenerate contours."""
        matrix = values @ self.closed
        normal = matrix.T @ matrix
        normal += 1e-9 * len(target) * np.eye(len(normal))
        return self.closed @ np.linalg.solve(normal, matrix.T @ target)

    def _corrected(self, t: np.ndarray, values: np.ndarray, coefficients: np.ndarray, off: np.ndarray) -> np.ndarray:
        """Return t after a damped Newton step towards the nearest points on the curve; order and ends are preserved."""
        first, second = self.derivatives(t, values)
        slope = first @ coefficients
        speed = (slope**2).sum(axis=1)
        curvature = np.maximum(speed + (off * (second @ coefficients)).sum(axis=1), speed / 2)
        step = (off * slope).sum(axis=1) / np.maximum(curvature, 1e-12)
        moved = np.maximum.accumulate((t - STEP * step.clip(-LARGEST_STEP, LARGEST_STEP)).clip(-1, 1))
        moved[0], moved[-1] = -1.0, 1.0
        return moved
