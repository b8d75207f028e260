"""Greedy evaluation with the prompt, pixels, parser and rewards of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_grpo.evaluation.metrics import Metric, load_scorer, metric_names, summarize
from vlm_grpo.rewards.accuracy import given_answer
from vlm_grpo.rewards.adapter import with_facts

__all__ = ["Evaluation", "Metric", "evaluate", "metric_names", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """The task's metrics, its own one first, and a prediction for each row in the order of the data."""

    task: str
    metrics: dict[str, Metric]
    predictions: list[dict[str, Any]]

    @property
    def main(self) -> Metric:
        """The metric that the task is judged by."""
        return next(iter(self.metrics.values()))


def evaluate(
    model: Any,
    processor: Any,
    dataset: Sequence[Mapping[str, Any]],
    *,
    task: str = "default",
    limit: int | None = None,
    seed: int = 0,
    reward_options: Mapping[str, Any] | None = None,
    **generation: Any,
) -> Evaluation:
    """Complete every row greedily and score the completions.

    Args:
        model, processor: as `from_pretrained` gives them.
        dataset: rows of `vlm_grpo.load_dataset`.
        task: names the metric; unknown ones are a KeyError.
        limit: only the first rows; None is all.
        seed: of the bootstrap; greedy completions have none.
        reward_options: such as `encoder` of the reasoning reward; None is the rewards' defaults.
        generation: `batch_size`, `max_completion_length`, `template_options`, `on_batch` of `generate_greedy`.

    Raises:
        ValueError: there is no row to evaluate.
    """
    numbers = range(len(dataset) if limit is None else min(limit, len(dataset)))
    if not numbers:
        raise ValueError(f"evaluate: needs at least one row, got {len(dataset)} rows and limit {limit}")
    predictions = predict(model, processor, dataset, numbers, task=task, reward_options=reward_options, **generation)
    return summary(task, predictions, seed)


def summary(task: str, predictions: list[dict[str, Any]], seed: int = 0) -> Evaluation:
    """The evaluation that some predictions amount to."""
    metrics = summarize([prediction["scores"] for prediction in predictions], metric_names(task), seed)
    return Evaluation(task, metrics, predictions)


def predict(
    model: Any,
    processor: Any,
    dataset: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    *,
    task: str,
    reward_options: Mapping[str, Any] | None = None,
    on_batch: Callable[[int], None] | None = None,
    **generation: Any,
) -> list[dict[str, Any]]:
    """One prediction for each numbered row: what was asked, completed and parsed, and its scores. Ready for JSON."""
    from vlm_grpo.evaluation.generate import generate_greedy

    scorer = load_scorer(metric_names(task), reward_options)
    rows = _Numbered(dataset, numbers)
    completions = generate_greedy(model, processor, rows, on_batch=on_batch, **generation)
    records = [with_facts(dataset[n]["record"], c.facts) for n, c in zip(numbers, completions, strict=True)]
    scores = scorer([completion.text for completion in completions], records)
    predictions = []
    for number, completion, record, row in zip(numbers, completions, records, scores, strict=True):
        predictions.append(
            {
                "row": number,
                "id": record.id,
                "question": record.question,
                "images": [ref.source if isinstance(ref.source, str) else None for ref in record.images],
                "answer": record.answer,
                "predicted": given_answer(completion.text, record),
                "scores": row,
                "completion": completion.text,
                "num_tokens": completion.num_tokens,
                "is_truncated": completion.is_truncated,
            }
        )
    return predictions


def shard(rows: int, rank: int, ranks: int) -> list[int]:
    """The row numbers of one rank: every rank gets equally many, the last ones start again at the first rows.

    Under ZeRO-3 every `generate` is a collective, so no rank may have one batch more than another.
    """
    if rows == 0:
        return []
    each = math.ceil(rows / ranks)
    return [(rank + ranks * position) % rows for position in range(each)]


def unique_rows(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All ranks' predictions in the order of the data, each row once."""
    by_row = {prediction["row"]: prediction for prediction in predictions}
    return [by_row[row] for row in sorted(by_row)]


class _Numbered:
    """Some rows of a data set, each made only when it is asked for."""

    def __init__(self, dataset: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
        self.dataset = dataset
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.dataset[self.numbers[index]]
