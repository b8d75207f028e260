"""Evaluation with the prompts, image processing, parser and rewards of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlm_grpo.evaluation.aggregate import Metric, episode_names, load_scorer, metric_names, summarize
from vlm_grpo.evaluation.predictions import Backend, Scoring
from vlm_grpo.evaluation.sampling_params import SamplingParams, check_pass_k
from vlm_grpo.records import Prediction, Row
from vlm_grpo.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


__all__ = ["Evaluation", "Metric", "SamplingParams", "evaluate", "load_scorer", "metric_names", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of the task, with the main one first, and a prediction per row in the order of the data.

    `groups` has the same metrics for every group of examples; empty without a column to group by.
    """

    task: str
    metrics: dict[str, Metric]
    predictions: list[Prediction]
    groups: dict[str, dict[str, Metric]] = field(default_factory=dict)

    @property
    def main(self) -> Metric:
        """Return the main metric of the task."""
        return next(iter(self.metrics.values()))


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: Sequence[Row],
    *,
    task: str = "default",
    limit: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_samples: int = 1,
    pass_k: Sequence[int] = (),
    group_by: str | None = None,
    reward_options: Mapping[str, object] | None = None,
    **generation: Any,
) -> Evaluation:
    """Generate a completion for every row, greedily by default, and score it.

    Args:
        model, processor: as returned by `from_pretrained`.
        dataset: rows of `vlm_grpo.load_dataset`.
        task: task whose metrics are computed; an unknown one is a KeyError.
        limit: number of rows to evaluate; None means all.
        seed: random seed of the bootstrap and of sampled completions.
        temperature, top_p, num_samples: sampling parameters; temperature 0 is greedy.
        pass_k: the k of each pass@k (arXiv:2107.03374), at most num_samples.
        group_by: a column; `groups` of the result then has the metrics for each of its values.
        reward_options: options such as `encoder` of the reasoning reward; None means the defaults.
        generation: `batch_size`, `max_completion_length`, `template_options` of `HFBackend`, and `on_batch`, which is
            called with the number of rows of each finished batch.

    Raises:
        ValueError: there are no rows to evaluate, or options are incompatible.
    """
    sampling = SamplingParams(temperature, top_p, num_samples, seed)
    check_pass_k(pass_k, num_samples, TASKS[task].metric)
    numbers = range(len(dataset) if limit is None else min(limit, len(dataset)))
    if not numbers:
        raise ValueError(f"evaluate: needs at least one row, got {len(dataset)} rows and limit {limit}")
    scoring = Scoring(task, reward_options, pass_k, group_by)
    predictions = predict(model, processor, dataset, numbers, scoring=scoring, sampling=sampling, **generation)
    return summary(task, predictions, seed, pass_k)


def summary(task: str, predictions: list[Prediction], seed: int = 0, pass_k: Sequence[int] = ()) -> Evaluation:
    """Compute the evaluation of predictions."""
    numbers: set[str] = set()
    names = metric_names(task)
    if any("episode" in prediction for prediction in predictions):
        names, numbers = episode_names(names, predictions)
    names = list(dict.fromkeys([names[0], *(f"pass@{k}" for k in pass_k), *names[1:]]))
    groups = list(dict.fromkeys(prediction["group"] for prediction in predictions if "group" in prediction))
    parts = {group: [entry for entry in predictions if entry["group"] == group] for group in sorted(groups)}
    return Evaluation(
        task,
        summarize(predictions, names, seed, numbers),
        predictions,
        {group: summarize(part, names, seed, numbers) for group, part in parts.items()},
    )


def predict(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: Sequence[Row],
    numbers: Sequence[int],
    *,
    task: str | None = None,
    scoring: Scoring | None = None,
    reward_options: Mapping[str, object] | None = None,
    on_batch: Callable[[int], None] | None = None,
    **generation: Any,
) -> list[Prediction]:
    """Return one prediction for each row number, in this order, with a model in this process.

    `scoring`, or `task` and `reward_options`, define the scores.
    """
    from vlm_grpo.evaluation.backends.hf import HFBackend

    scoring = scoring or Scoring(task or "default", reward_options)
    return predict_with(HFBackend(model, processor, **generation), dataset, numbers, scoring, on_batch=on_batch)


def predict_with(
    backend: Backend,
    dataset: Sequence[Row],
    numbers: Sequence[int],
    scoring: Scoring,
    *,
    on_batch: Callable[[int], None] | None = None,
    keep: Callable[[list[Prediction]], None] | None = None,
) -> list[Prediction]:
    """Return one prediction for each row number, in this order; `keep` receives those of each finished batch."""
    by_row: dict[int, Prediction] = {}
    for batch in backend(dataset, numbers):
        predictions = scoring.predictions(batch)
        if keep is not None:
            keep(predictions)
        by_row |= {prediction["row"]: prediction for prediction in predictions}
        if on_batch is not None:
            on_batch(len(predictions))
    return [by_row[number] for number in numbers]


def shard(rows: int, rank: int, ranks: int) -> list[int]:
    """Return the row numbers of one rank. All ranks get the same number of rows; the last ones wrap around.

    Under ZeRO-3 every `generate` is a collective, so no rank may have one batch more than another.
    """
    if rows == 0:
        return []
    each = math.ceil(rows / ranks)
    return [(rank + ranks * position) % rows for position in range(each)]


def unique_rows(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return all ranks' predictions in the order of the data, each row once."""
    by_row = {prediction["row"]: prediction for prediction in predictions}
    return [by_row[row] for row in sorted(by_row)]
