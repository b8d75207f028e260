"""The reward that asks a judge, whatever the record's method is. How judges are asked is in asking.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import accuracy_reward, method_of, prepare_accuracy
from vlm_grpo.rewards.asking import JudgeSettings, judge_of

JUDGED = "judge"


def judge_reward(
    completion: str, record: Record, *, judge: JudgeSettings | None = None, tolerance: float | None = None
) -> float | None:
    """How right a language model finds the answer, 0 to 1; 0 without an answer, None without a true one.

    Where the model gives no verdict (a failed request, a reply without a score) or the answer speaks to it, the
    record's own accuracy method decides. Only the answer is shown to the model, never the reasoning.

    Args:
        judge: Which model and server; default: from the environment (JUDGE_MODEL, JUDGE_BASE_URL, JUDGE_API_KEY).
        tolerance: As for `accuracy`, where that decides.
    """
    return accuracy_reward(completion, _judged(record), judge=judge, tolerance=tolerance)


def prepare_judge(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    judge: JudgeSettings | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> None:
    """Ask about all answers at the same time.

    Raises:
        ValueError: no model is named.
        ImportError: the package openai is missing.
    """
    judge_of(judge)
    prepare_accuracy(completions, [_judged(record) for record in records], judge=judge, log_metric=log_metric)


def _judged(record: Record) -> Record:
    """The record with a judge as its method; its own, for where there is no verdict, is kept beside it."""
    return replace(record, method=JUDGED, extra={**record.extra, "fallback_method": method_of(record)})
