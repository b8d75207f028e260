"""Metrics of an evaluation: mean rewards and dataset metrics, with bootstrap intervals. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlm_grpo.evaluation.dataset_metrics import (
    DATASET_METRICS,
    EVIDENCE,
    TASK_METRICS,
    PreparedEvidence,
    Value,
    dataset_metric,
)
from vlm_grpo.records import JsonObject, Prediction, Record
from vlm_grpo.rewards import REWARDS, resolve_rewards
from vlm_grpo.rewards.adapter import call_batch_reward
from vlm_grpo.tasks import TASKS

RESAMPLES = 2000
Scorer = Callable[[Sequence[str], Sequence[Record]], list[dict[str, "float | None"]]]


@dataclass(frozen=True)
class Metric:
    """A value over `count` examples and its 95 % interval; all None if it applies to no example.

    `is_share`: it is a fraction or a score from 0 to 1, rather than a count or another number of an environment.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    is_share: bool = True

    def __str__(self) -> str:
        if self.value is None:
            return "not applicable"
        if not self.is_share:
            return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def metric_names(task: str) -> list[str]:
    """Return the metrics of a task (names in DATASET_METRICS and REWARDS): the main one, then the default rewards.

    Raises:
        KeyError: the task is unknown.
    """
    entry = TASKS[task]
    return list(dict.fromkeys([*TASK_METRICS.get(task, ()), entry.metric, *entry.rewards]))


def reward_names(task: str) -> list[str]:
    """Return the task's metrics with a value per example; the first one ranks the examples."""
    names = [name for name in metric_names(task) if name not in DATASET_METRICS]
    return list(dict.fromkeys([TASKS[task].metric, *names]))


def evidence_names(task: str) -> list[str]:
    """Return the evidence that the task's dataset metrics need of each completion: names in EVIDENCE."""
    return list(dict.fromkeys(DATASET_METRICS[name].evidence for name in metric_names(task) if name in DATASET_METRICS))


def collect_evidence(names: Sequence[str], completion: str, record: Record) -> JsonObject:
    """Return the evidence of one completion."""
    return {name: EVIDENCE[name](completion, record) for name in names}


def load_scorer(names: Sequence[str], options: Mapping[str, object] | None = None) -> Scorer:
    """Return a function that scores texts and their records with these rewards; None if one does not apply.

    Resources such as the sentence encoder are loaded here; `options` are those of `resolve_rewards`.

    Raises:
        KeyError: a reward is unknown.
        ImportError: a package of an extra is missing.
    """
    rewards, _ = resolve_rewards(list(names), **(options or {}))

    def scores(texts: Sequence[str], records: Sequence[Record]) -> list[dict[str, float | None]]:
        columns = [call_batch_reward(reward, completions=texts, record=list(records)) for reward in rewards]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    return scores


def episode_names(of_task: Sequence[str], predictions: Sequence[Prediction]) -> tuple[list[str], set[str]]:
    """Return the metrics that apply to any episode, and which of them are numbers rather than fractions."""
    scored = dict.fromkeys(name for prediction in predictions for name in prediction["scores"])
    first = [name for name in ("success", "reward") if name in scored]
    measures = [name for name in of_task if name in DATASET_METRICS]
    names = [*first, *measures, *(name for name in scored if name not in first)]
    numbers = {name for prediction in predictions for name in prediction["episode"]} - {"success", *REWARDS}
    return [name for name in names if metric_values(predictions, name)], numbers


def summarize(
    predictions: Sequence[Prediction], names: Sequence[str], seed: int = 0, numbers: Collection[str] = ()
) -> dict[str, Metric]:
    """Return the metrics with their intervals, each over the predictions that it applies to.

    Args:
        numbers: names of metrics that are not fractions.
    """
    metrics: dict[str, Metric] = {}
    prepared: PreparedEvidence = {}
    for name in names:
        values = metric_values(predictions, name)
        if name in DATASET_METRICS:
            metrics[name] = dataset_metric_with_interval(name, values, seed, prepared)
        else:
            metrics[name] = replace(mean_with_interval(values, seed), is_share=name not in numbers)
    return metrics


def metric_values(predictions: Sequence[Prediction], name: str) -> list[Any]:
    """Return the scores of a reward, or the evidence of a dataset metric, for the predictions it applies to."""
    values = [prediction_value(prediction, name) for prediction in predictions]
    return [value for value in values if value is not None]


def prediction_value(prediction: Prediction, name: str) -> Any:
    """Return a prediction's score, or its evidence per completion; None if the metric does not apply."""
    if name not in DATASET_METRICS:
        return prediction["scores"].get(name)
    evidence = prediction.get("evidence", {}).get(DATASET_METRICS[name].evidence)
    return None if evidence is None or None in evidence else evidence


def mean_with_interval(values: Sequence[float], seed: int = 0) -> Metric:
    """Return the mean and its 95 % percentile-bootstrap interval (Efron 1979) over examples.

    It measures the variation over samples of examples, not over training seeds.
    """
    if not values:
        return Metric(None, None, None, 0)
    data = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means = [data[random.integers(0, len(data), len(data))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Metric(float(data.mean()), float(low), float(high), len(data))


def dataset_metric_with_interval(
    name: str, evidence: Sequence[Sequence[object]], seed: int = 0, prepared: PreparedEvidence | None = None
) -> Metric:
    """Return the dataset metric of all examples and its 95 % bootstrap interval.

    The draws are shifted by the difference between the value and their mean: mAP is larger on average if examples are
    repeated, so that its plain percentiles may be above the value itself.
    """
    if not evidence:
        return Metric(None, None, None, 0)
    value = dataset_metric(name, evidence, prepared)
    whole = value(np.ones(len(evidence)))
    if whole is None:
        return Metric(None, None, None, 0)
    resampled_values = [
        part for part in resampled(value, len(evidence), DATASET_METRICS[name].resamples, seed) if part is not None
    ]
    low, high = np.quantile(resampled_values or [whole], (0.025, 0.975)) + whole - np.mean(resampled_values or [whole])
    return Metric(whole, max(0.0, float(low)), min(1.0, float(high)), len(evidence))


def resampled(value: Value, examples: int, resamples: int, seed: int) -> list[float | None]:
    """Return the value for bootstrap draws of the examples."""
    random = np.random.default_rng(seed)
    draws = (random.integers(0, examples, examples) for _ in range(resamples))
    return [value(np.bincount(draw, minlength=examples).astype(float)) for draw in draws]
