"""Reward for counting."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from vlm_grpo.answer_parser import ground_truth_text, parse_answer
from vlm_grpo.records import Record
from vlm_grpo.rewards.numeric import Quantity, parse_quantity, quantities_equal

NUMBER_WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
DIGIT = re.compile(r"\d")
NUMBER = re.compile(r"(?<!\w)[-+−]?\d(?:[\d.,:/]*\d)?|\b(?:" + "|".join(NUMBER_WORDS) + r")\b", re.IGNORECASE)
MAX_LENGTH = 300  # characters; longer answers are not parsed


@lru_cache(maxsize=65536)
def parse_count(text: str) -> Quantity | None:
    """Return the only number in a text with its noun, as in "there are three red cubes"; None unless there is one."""
    text = text.strip()
    quantity = parse_quantity(text)
    if quantity is not None or len(text) > MAX_LENGTH:
        return quantity
    matches = list(NUMBER.finditer(text))
    if len(matches) != 1:
        return None
    (match,) = matches
    if DIGIT.search(text[: match.start()] + text[match.end() :]):
        return None  # inside a word, such as "x3"
    if text[: match.start()].endswith(("-", "−", "/", ".", "–")) or text[match.end() :].startswith(("-", "–", "/")):
        return None  # half of a range or a fraction
    word = match[0].lower()
    rest = text[match.end() :]
    return parse_quantity(
        (str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else match[0]) + rest
    ) or parse_quantity(str(word) + rest)


def count_reward(completion: str, record: Record, *, is_partial: bool = False) -> float | None:
    """Return 1.0 if the only number in the answer is correct, else 0.0; None if the gold answer is not a number.

    "3", "3 cubes" and "There are three cubes." all mean 3; if both answers have a unit, the units must agree. With
    `is_partial`, a wrong number scores max(0, 0.5 * (1 - |predicted - target| / max(1, target))).
    """
    target = None if record.answer is None else parse_count(ground_truth_text(record.answer))
    if target is None:
        return None
    predicted = parse_count(parse_answer(completion, record.task) or "")
    if predicted is None or (
        predicted.unit and target.unit and not quantities_equal(predicted, predicted._replace(unit=target.unit))
    ):
        return 0.0
    if predicted.value == target.value:
        return 1.0
    if not is_partial:
        return 0.0
    difference, truth = abs(Fraction(predicted.value - target.value)), abs(Fraction(target.value))
    return 0.5 * float(max(Fraction(0), 1 - difference / max(Fraction(1), truth)))
