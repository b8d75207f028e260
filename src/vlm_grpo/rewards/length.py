"""Rewards of length and repetition."""

from __future__ import annotations

import math

from vlm_grpo.boxes import boxes_in
from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.judge_client import JudgeSettings

NGRAM = 6
LONG_WORD = 20  # characters a word on average: no language with spaces gets there


def cosine_length_reward(
    completion: str,
    record: Record,
    *,
    num_tokens: int | None = None,
    max_length: int = 1024,
    judge: JudgeSettings | None = None,
) -> float | None:
    """Return 1.0 for a short correct answer, 0.5 at the limit; -1.0 for a short wrong one, -0.5 at the limit.

    Cosine between the two ends (arXiv:2502.03373, eq. 1); the length is clamped at the limit, so that it never wraps.
    """
    accuracy = accuracy_reward(completion, record, judge=judge)
    if accuracy is None:
        return None
    length = len(completion.split()) if num_tokens is None else num_tokens
    share = min(1.0, length / max_length)
    short, long = (1.0, 0.5) if accuracy > 0.5 else (-1.0, -0.5)
    return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * share))


def overlong_reward(
    completion: str, record: Record, *, num_tokens: int | None = None, max_length: int = 1024, cache: int | None = None
) -> float | None:
    """Return DAPO's overlong punishment (arXiv:2503.14476, eq. 13): 0 up to the cache, falling to -1 at the limit."""
    length = len(completion.split()) if num_tokens is None else num_tokens
    cache = max(1, max_length // 5) if cache is None else cache
    return -min(1.0, max(0.0, (length - (max_length - cache)) / cache))


def repetition_reward(completion: str, record: Record, *, ngram: int = NGRAM) -> float:
    """Return minus the fraction of repeated n-grams of words, or of repeated boxes, -1 to 0 (arXiv:2502.03373).

    Without spaces, as in some languages, n-grams are of characters.
    """
    words = completion.lower().split()
    if len(completion) > LONG_WORD * max(1, len(words)):
        words = list("".join(words))
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return -max(_repeated(grams), _repeated(boxes_in(completion)))


def _repeated(things: list) -> float:
    return 1.0 - len(set(things)) / len(things) if things else 0.0
