"""Numbers of an evaluation: the rewards of training, averaged over examples, with an interval. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_grpo.records import Record
from vlm_grpo.rewards import resolve_rewards
from vlm_grpo.tasks import TASKS

RESAMPLES = 2000
Scorer = Callable[[Sequence[str], Sequence[Record]], list[dict[str, "float | None"]]]


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


def load_scorer(names: Sequence[str], options: Mapping[str, Any] | None = None) -> Scorer:
    """A function from texts and their records to the named rewards of each; None where one does not apply.

    What a reward needs (the sentence encoder) is loaded now; `options` are those of `resolve_rewards`.

    Raises:
        KeyError: an unknown reward.
        ImportError: a package of an extra is missing.
    """
    rewards, _ = resolve_rewards(list(names), **(options or {}))

    def scores(texts: Sequence[str], records: Sequence[Record]) -> list[dict[str, float | None]]:
        columns = [reward(completions=texts, record=list(records)) for reward in rewards]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    return scores


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
