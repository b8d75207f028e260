"""Reward for a number of things."""

from __future__ import annotations

import re
from functools import lru_cache

from vlm_grpo.answer_parser import ground_truth_text, parse_answer
from vlm_grpo.records import Record
from vlm_grpo.rewards.numeric import Quantity, agree, quantity

WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
DIGIT = re.compile(r"\d")
NUMBER = re.compile(r"(?<!\w)[-+−]?\d(?:[\d.,:/]*\d)?|\b(?:" + "|".join(WORDS) + r")\b", re.IGNORECASE)
LONGEST = 300  # characters; a longer answer is a ramble


@lru_cache(maxsize=65536)
def number_in(text: str) -> Quantity | None:
    """The one whole number in a text with what it counts, "there are three red cubes"; None for none or several."""
    text = text.strip()
    whole = quantity(text)
    if whole is not None or len(text) > LONGEST:
        return whole
    found = list(NUMBER.finditer(text))
    if len(found) != 1:
        return None
    (match,) = found
    if DIGIT.search(text[: match.start()] + text[match.end() :]):
        return None  # inside a word, such as "x3"
    if text[: match.start()].endswith(("-", "−", "/", ".", "–")) or text[match.end() :].startswith(("-", "–", "/")):
        return None  # half of a range or a fraction
    word = match[0].lower()
    rest = text[match.end() :]
    return quantity((str(WORDS.index(word)) if word in WORDS else match[0]) + rest) or quantity(str(word) + rest)


def count_reward(completion: str, record: Record, *, is_partial: bool = False) -> float | None:
    """1.0 when the only number of the answer is the true one, else 0.0; None when the truth is no number.

    "3", "3 cubes" and "There are three cubes." are the number 3; units that both name must agree. With `is_partial` a
    number that is off earns 0.5 * (1 - |given - true| / max(1, true)), at least 0.
    """
    right = None if record.answer is None else number_in(ground_truth_text(record.answer))
    if right is None:
        return None
    given = number_in(parse_answer(completion, record.task) or "")
    if given is None or (given.unit and right.unit and not agree(given, given._replace(unit=right.unit))):
        return 0.0
    if given.value == right.value:
        return 1.0
    if not is_partial:
        return 0.0
    return float(0.5 * max(0, 1 - abs(given.value - right.value) / max(1, abs(right.value))))
