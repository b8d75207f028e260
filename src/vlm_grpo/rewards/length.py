"""Rewards of length and repetition."""

from __future__ import annotations

import math

from vlm_grpo.boxes import boxes_in
from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.judge_client import JudgeSettings

NGRAM = 6
LONG_WORD = 20  # characters per word on average; languages with spaces stay below


def cosine_length_reward(
    completion: str,
    record: Record,
    *,
    num_tokens: int | None = None,
    max_length: int = 1024,
    judge: JudgeSettings | None = None,
) -> float | None:
    """Return 1.0 for a correct answer of length 0, falling to 0.5 at the limit; for a wrong one -1.0, rising to -0.5.

    The interpolation is a cosine (arXiv:2502.03373, eq. 1). Lengths above the limit are clamped, so it never wraps.
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
    """Return DAPO's overlong penalty (arXiv:2503.14476, eq. 13): 0 up to limit - cache, then falling to -1."""
    length = len(completion.split()) if num_tokens is None else num_tokens
    cache = max(1, max_length // 5) if cache is None else cache
    return -min(1.0, max(0.0, (length - (max_length - cache)) / cache))


def repetition_reward(completion: str, record: Record, *, ngram: int = NGRAM) -> float:
    """Return minus the fraction of repeated n-grams of words, or of repeated boxes, -1 to 0 (arXiv:2502.03373).

    In text without spaces, as in some languages, n-grams of characters are used.
    """
    words = completion.lower().split()
    if len(completion) > LONG_WORD * max(1, len(words)):
        words = list("".join(words))
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return -max(_repeated(grams), _repeated(boxes_in(completion)))


def _repeated(things: list) -> float:
    return 1.0 - len(set(things)) / len(things) if things else 0.0
