"""Rewards for reasoning steps in their order, and together with the answer (arXiv:2603.13099).

The matching of steps is in reasoning.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import accuracy_reward, prepare_accuracy
from vlm_grpo.rewards.asking import JudgeSettings
from vlm_grpo.rewards.reasoning import (
    ENCODER,
    match_f1,
    matched_pairs,
    prepare_reasoning,
    reasoning_reward,
    step_similarity,
    threshold_of,
)
from vlm_grpo.table import unknown_name


def reasoning_ordered_reward(
    completion: str,
    record: Record,
    *,
    share: float = 0.3,
    measure: str = "kendall",
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
) -> float | None:
    """Match F1 * (1 - share + share * order), order 0 to 1 of the matched steps; None without reference steps.

    Args:
        share: How much of the F1 depends on the order, 0 to 1.
        measure: `kendall`, (tau + 1) / 2 of the matched pairs, or `longest`, the longest rising subsequence over their
            number. With fewer than two pairs the order is 1.
        encoder, device, threshold: As for `reasoning`.

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in MEASURES:
        raise ValueError(unknown_name("order measure", measure, list(MEASURES)))
    table = step_similarity(completion, record, encoder, device)
    if table is None:
        return None
    limit = threshold_of(encoder) if threshold is None else threshold
    references = [column for _, column in matched_pairs(table, limit)]
    order = MEASURES[measure](references) if len(references) > 1 else 1.0
    return match_f1(table, limit) * (1 - share + share * order)


def kendall(places: Sequence[int]) -> float:
    """(Kendall's tau + 1) / 2 of different numbers: the share of pairs that rise."""
    pairs = len(places) * (len(places) - 1) / 2
    return sum(one < other for at, one in enumerate(places) for other in places[at + 1 :]) / pairs


def longest(places: Sequence[int]) -> float:
    """The longest rising subsequence of different numbers, as a share of them."""
    ends: list[int] = []  # the smallest end of a rising subsequence of each length
    for place in places:
        at = bisect_left(ends, place)
        ends[at : at + 1] = [place]
    return len(ends) / len(places)


MEASURES = {"kendall": kendall, "longest": longest}


def causal_reward(
    completion: str,
    record: Record,
    *,
    right: float = 0.6,
    wrong: float = 0.3,
    steps: float = 0.4,
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
    tolerance: float | None = None,
    judge: JudgeSettings | None = None,
) -> float | None:
    """Right answer: 0.6 + 0.4 * Match F1; wrong: 0.3 * 0.4 * Match F1. None without a true answer or reference steps.

    Args:
        right: What a right answer is worth without any step.
        wrong: What share of the steps' worth is left when the answer is wrong.
        steps: What all steps are worth.
        encoder, device, threshold: As for `reasoning`.
        tolerance, judge: As for `accuracy`; above 0.5 is right.
    """
    accuracy = accuracy_reward(completion, record, tolerance=tolerance, judge=judge)
    f1 = reasoning_reward(completion, record, encoder=encoder, device=device, threshold=threshold)
    if accuracy is None or f1 is None:
        return None
    return right + steps * f1 if accuracy > 0.5 else wrong * steps * f1


def prepare_causal(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
    judge: JudgeSettings | None = None,
    log_metric: Any = None,
) -> None:
    """Verify, ask and embed for all completions at the same time."""
    prepare_reasoning(completions, records, encoder=encoder, device=device, threshold=threshold)
    prepare_accuracy(completions, records, judge=judge, log_metric=log_metric)
