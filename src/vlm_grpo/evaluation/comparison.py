"""Compare two evaluations of the same examples: differences and their significance. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path

import numpy as np

from vlm_grpo.evaluation.aggregate import prediction_value
from vlm_grpo.evaluation.dataset_metrics import DATASET_METRICS, Value, dataset_metric
from vlm_grpo.evaluation.strict_json import loads
from vlm_grpo.records import JsonObject, Prediction

RESAMPLES, PERMUTATIONS = 2000, 10_000
MAX_EXACT = 14  # maximum number of nonzero differences for an exact permutation test


class CompareError(ValueError):
    """The two folders cannot be compared."""


@dataclass(frozen=True)
class EvaluationRun:
    """A finished evaluation, read from its folder."""

    folder: Path
    results: JsonObject
    predictions: Mapping[int, Prediction]


@dataclass(frozen=True)
class Difference:
    """A metric of two runs on their common examples.

    `low` and `high` are the 95 % interval of the difference `second - first`, `p` is the p-value and `test` the name of
    the test. `is_share` is that of `Metric`.
    """

    name: str
    first: float
    second: float
    low: float
    high: float
    p: float
    test: str
    count: int
    is_share: bool = True

    @property
    def change(self) -> float:
        return self.second - self.first

    @property
    def interval(self) -> str:
        """Return the difference and its interval as text."""
        return f"{self.text(self.change, '+')} [{self.text(self.low, '+')}, {self.text(self.high, '+')}]"

    def text(self, value: float, sign: str = "") -> str:
        """Return a value of this metric as text, in percent if it is a fraction."""
        return f"{value:{sign}.1%}" if self.is_share else f"{value:{sign}.2f}"


def read_run(folder: str | Path) -> EvaluationRun:
    """Read a finished evaluation.

    Raises:
        CompareError: the folder does not contain one.
    """
    folder = Path(folder)
    try:
        results = loads((folder / "results.json").read_text(encoding="utf-8"))
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
        predictions = {entry["row"]: entry for entry in map(loads, filter(None, lines))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompareError(
            f"{folder}: not a finished evaluation ({error}); expected results.json and predictions.jsonl as "
            "written by `vlm-grpo evaluate --output_dir`"
        ) from error
    return EvaluationRun(folder, results, predictions)


def common_rows(first: EvaluationRun, second: EvaluationRun) -> list[int]:
    """Return the rows that are in both runs.

    Raises:
        CompareError: the tasks differ, there are no common rows, or a common row has another question or answer.
    """
    tasks = [run.results.get("task") for run in (first, second)]
    if tasks[0] != tasks[1]:
        raise CompareError(f"the tasks differ: {first.folder} has {tasks[0]!r}, {second.folder} has {tasks[1]!r}")
    rows = sorted(first.predictions.keys() & second.predictions.keys())
    if not rows:
        raise CompareError(f"{first.folder} and {second.folder} have no row in common")
    digests = [(first.predictions[row].get("data"), second.predictions[row].get("data")) for row in rows]
    other = [row for row, (one, two) in zip(rows, digests, strict=True) if one != two or one is None]
    if other:
        raise CompareError(
            f"the runs have different data: row {other[0]} and {len(other) - 1} more of {len(rows)} common rows "
            "differ in question, answer or image; evaluate both runs on the same files"
        )
    return rows


def compare_runs(first: EvaluationRun, second: EvaluationRun, seed: int = 0) -> list[Difference]:
    """Return the difference of every common metric, on the common rows.

    Raises:
        CompareError: see `common_rows`.
    """
    rows = common_rows(first, second)
    names = [name for name in first.results["metrics"] if name in second.results["metrics"]]
    differences = []
    for name in names:
        pairs = [
            (prediction_value(first.predictions[row], name), prediction_value(second.predictions[row], name))
            for row in rows
        ]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            difference = (
                dataset_metric_difference(name, pairs, seed)
                if name in DATASET_METRICS
                else score_difference(name, pairs, seed)
            )
            is_share = first.results["metrics"][name].get("is_share", True)
            differences += [] if difference is None else [replace(difference, is_share=is_share)]
    return differences


def score_difference(name: str, pairs: Sequence[tuple[float, float]], seed: int = 0) -> Difference:
    """Return the difference of two means, with McNemar's exact test for scores of 0 and 1, else a permutation test."""
    data = np.asarray(pairs, dtype=float)  # (N, 2)
    changes = data[:, 1] - data[:, 0]
    if np.isin(data, (0, 1)).all():
        p, test = mcnemar(int((changes > 0).sum()), int((changes < 0).sum())), "McNemar, exact"
    else:
        p, test = permutation(changes, seed), "paired permutation"
    random = np.random.default_rng(seed)
    resampled_means = [changes[random.integers(0, len(changes), len(changes))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled_means, (0.025, 0.975))
    means = data.mean(axis=0)
    return Difference(name, float(means[0]), float(means[1]), float(low), float(high), p, test, len(data))


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: half of the changed examples are expected to improve.

    2 * P(X <= min(gained, lost)) for X ~ Binomial(gained + lost, 1/2), at most 1 (McNemar 1947, Psychometrika 12:153;
    the exact form: Agresti, Categorical Data Analysis, dependent proportions).
    """
    changed = gained + lost
    tail = sum(comb(changed, count) for count in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**changed)))


def permutation(changes: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of Fisher's paired randomization test, which flips the signs of changes.

    For up to 14 changes all signs are enumerated; for more, 10,000 are sampled and p = (1 + as large) / (1 + draws)
    (Phipson & Smyth 2010, arXiv:1603.05766), which is never 0.
    """
    changes = changes[changes != 0]
    observed = abs(changes.sum()) - 1e-9 * max(1.0, float(np.abs(changes).sum()))
    if len(changes) <= MAX_EXACT:
        sums = [abs(np.dot(signs, changes)) for signs in product((1, -1), repeat=len(changes))]
        return float(np.mean([value >= observed for value in sums]))
    random = np.random.default_rng(seed)
    large = sum(
        int(abs(np.dot(random.integers(0, 2, len(changes)) * 2 - 1, changes)) >= observed) for _ in range(PERMUTATIONS)
    )
    return (1 + large) / (1 + PERMUTATIONS)


def dataset_metric_difference(
    name: str, pairs: Sequence[tuple[list[object], list[object]]], seed: int = 0
) -> Difference | None:
    """Return the difference of a dataset metric; its permutation test swaps the answers of both runs per example.

    None if the metric has no value, or if the runs have different numbers of answers.
    """
    if len({len(part) for pair in pairs for part in pair}) > 1:
        return None
    value = dataset_metric(name, [first for first, _ in pairs] + [second for _, second in pairs])
    count, resamples = len(pairs), DATASET_METRICS[name].resamples
    values = _values_of_both(value, np.ones(count), np.ones(count, dtype=bool))
    if values is None:
        return None
    random = np.random.default_rng(seed)
    draws = [np.bincount(random.integers(0, count, count), minlength=count).astype(float) for _ in range(resamples)]
    resampled = [pair for weights in draws if (pair := _values_of_both(value, weights, np.ones(count, dtype=bool)))]
    changes = np.array([second - first for first, second in resampled])
    low, high = np.quantile(changes, (0.025, 0.975)) + (values[1] - values[0]) - changes.mean()  # as in aggregate.py
    change = abs(values[1] - values[0]) - 1e-9
    flips = [_values_of_both(value, np.ones(count), random.random(count) < 0.5) for _ in range(resamples)]
    large = sum(abs(pair[1] - pair[0]) >= change for pair in flips if pair is not None)
    return Difference(
        name, *values, float(low), float(high), (1 + large) / (1 + resamples), "paired permutation", count
    )


def _values_of_both(value: Value, weights: np.ndarray, is_first: np.ndarray) -> tuple[float, float] | None:
    """Return the values of the first and the second answers, swapped where `is_first` (N,) is False."""
    halves = np.where(is_first, weights, 0), np.where(is_first, 0, weights)
    first = value(np.concatenate(halves))
    second = value(np.concatenate(halves[::-1]))
    return None if first is None or second is None else (first, second)
