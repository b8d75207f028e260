"""Whether the answer is right, by the record's own method."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vlm_grpo.records import Record
from vlm_grpo.rewards.choice import choice, normalise
from vlm_grpo.rewards.mathematics import equal, verify_all
from vlm_grpo.rewards.quantity import agree, calendar_date, quantity
from vlm_grpo.table import Table
from vlm_grpo.text import extract_answer, extract_json, parse_answer

YES_NO = re.compile(r"\b(?:yes|no)\b")


def exact(answer: str, truth: str, record: Record) -> float | None:
    """Equal but for surrounding white space."""
    return float(answer.strip() == truth.strip())


def text(answer: str, truth: str, record: Record) -> float | None:
    """Equal but for case, white space, articles and trailing punctuation."""
    return float(normalise(answer) == normalise(truth))


def mcq(answer: str, truth: str, record: Record) -> float | None:
    """The same letter, or the text of the right option; not applicable when the truth names no option."""
    right = choice(truth, record.options)
    return None if right is None else float(choice(answer, record.options) == right)


def yes_no(answer: str, truth: str, record: Record) -> float | None:
    """The same of yes and no, as whole words; not applicable when the truth is neither (or both)."""
    right = set(YES_NO.findall(truth.lower()))
    return None if len(right) != 1 else float(set(YES_NO.findall(answer.lower())) == right)


def numeric(answer: str, truth: str, record: Record) -> float | None:
    """The same number in the same unit, or the same day; not applicable when the truth is neither.

    A `tolerance` column (relative) of the record widens what counts as the same.
    """
    day = calendar_date(truth)
    if day is not None:
        return float(calendar_date(answer) == day)
    right = quantity(truth)
    if right is None:
        return None
    given = quantity(answer)
    return float(given is not None and agree(given, right, record.extra.get("tolerance")))


def symbolic(answer: str, truth: str, record: Record) -> float | None:
    """Equal as mathematics, by math-verify with the truth as gold."""
    return float(equal(truth, answer))


def items(value: str) -> list[str]:
    """The normalised items of a JSON list, or of text separated by commas."""
    parsed = extract_json(value)
    if parsed is None:
        parsed = value.split(",")
    elements = parsed if isinstance(parsed, list) else [parsed]
    return [normalise(item if isinstance(item, str) else json.dumps(item, sort_keys=True)) for item in elements]


def all_match(answer: str, truth: str, record: Record) -> float | None:
    """The same items, each as often, in any order."""
    return float(Counter(items(answer)) == Counter(items(truth)))


def list_in_order(answer: str, truth: str, record: Record) -> float | None:
    """The same items in the same order."""
    return float(items(answer) == items(truth))


def auto(answer: str, truth: str, record: Record) -> float | None:
    """By the type of the true answer: `kind` names the method."""
    return METHODS[kind(truth, record.options)](answer, truth, record)


@lru_cache(maxsize=65536)
def kind(truth: str, options: tuple[str, ...]) -> str:
    """The method that fits a true answer: a choice, yes or no, a number or day, a list, mathematics, otherwise text."""
    if options and choice(truth, options) is not None:
        return "mcq"
    if normalise(truth) in ("yes", "no"):
        return "yes_no"
    if calendar_date(truth) is not None or quantity(truth) is not None:
        return "numeric"
    if isinstance(extract_json(truth), list):
        return "all_match"
    return "math" if "$" in truth or "\\" in truth else "text"


METHODS: Table[Callable[[str, str, Record], float | None]] = Table(
    "accuracy method",
    {
        "auto": auto,
        "default": auto,  # VLM-R1's name
        "exact": exact,
        "text": text,
        "mcq": mcq,
        "yes_no": yes_no,
        "numeric": numeric,
        "math": symbolic,
        "all_match": all_match,
        "list": list_in_order,
    },
)


def accuracy_reward(completion: str, record: Record, *, tolerance: float | None = None) -> float | None:
    """1.0 for the right answer by the record's method, 0.0 for a wrong one or none; None without a true answer.

    `tolerance` is the relative error that a number may have (default: integers exact, decimals 1e-6).
    """
    if record.answer is None:
        return None
    answer = given_answer(completion, record)
    if answer is None:
        return 0.0
    if tolerance is not None:
        record = replace(record, extra={"tolerance": tolerance, **record.extra})
    return METHODS[record.method or "auto"](answer, gold(record.answer), record)


def given_answer(completion: str, record: Record) -> str | None:
    r"""The completion's answer; a record scored as mathematics may also give it in `\boxed{}`."""
    as_math = record.method == "math" and record.task == "default"
    return parse_answer(completion, "math" if as_math else record.task)


def prepare_accuracy(completions: Sequence[str], records: Sequence[Record], **options: Any) -> None:
    """Verify the mathematics among these completions at the same time, so that none waits for a slow one."""
    pairs = []
    for completion, record in zip(completions, records, strict=True):
        if record.answer is None:
            continue
        truth = gold(record.answer)
        method = record.method or "auto"
        if method == "math" or (method in ("auto", "default") and kind(truth, record.options) == "math"):
            answer = given_answer(completion, record)
            pairs += [] if answer is None else [(truth, answer)]
    if pairs:
        verify_all(pairs)


def gold(value: Any) -> str:
    """The true answer as text: tags unwrapped, lists and objects as JSON."""
    if isinstance(value, str):
        return (extract_answer(value) if "<answer>" in value else None) or value.strip()
    return json.dumps(value, ensure_ascii=False)
