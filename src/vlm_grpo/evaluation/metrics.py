"""Numbers of an evaluation: the rewards of training, averaged over examples, with an interval. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_grpo.records import Record
from vlm_grpo.rewards import score
from vlm_grpo.tasks import TASKS

RESAMPLES = 2000


@dataclass(frozen=True)
class Metric:
    """A mean over `count` examples and its 95 % interval; all None where it applied to no example."""

    value: float | None
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.value is None:
            return "not applicable"
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def metric_names(task: str) -> list[str]:
    """The task's metric first, then its default rewards.

    Raises:
        KeyError: an unknown task.
    """
    entry = TASKS[task]
    return list(dict.fromkeys([entry.metric, *entry.rewards]))


def score_completion(text: str, record: Record, names: Sequence[str]) -> dict[str, float | None]:
    """The named rewards of one completion; None where one does not apply to the record."""
    return {name: score(name, text, record=record) for name in names}


def summarize(scores: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int = 0) -> dict[str, Metric]:
    """Mean and interval of every named score, each over the examples that it applies to."""
    return {name: mean_with_interval([row[name] for row in scores if row[name] is not None], seed) for name in names}


def mean_with_interval(values: Sequence[float], seed: int = 0) -> Metric:
    """The mean and its 95 % percentile-bootstrap interval (Efron 1979) over examples.

    It says how much the mean would move with another draw of examples; it knows nothing of other training seeds.
    """
    if not values:
        return Metric(None, None, None, 0)
    data = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means = [data[random.integers(0, len(data), len(data))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Metric(float(data.mean()), float(low), float(high), len(data))
