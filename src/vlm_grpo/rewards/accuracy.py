"""Whether the answer is right, by the record's own method."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from vlm_grpo.records import Record
from vlm_grpo.table import Table
from vlm_grpo.text import extract_answer, parse_answer

NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([-+]?\d+))?(?:/(\d+))?\s*(.*)", re.DOTALL)
LETTER = re.compile(r"^(?:(?:the\s+)?answer(?:\s+is)?\s*:?\s*)?[(\[]?([a-z])(?:[)\].:](?:\s|$)|$)", re.IGNORECASE)
YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
RELATIVE_TOLERANCE = 1e-6  # for decimals; integers are exact


def exact(answer: str, truth: str, record: Record) -> float | None:
    """Equal but for surrounding white space."""
    return float(answer.strip() == truth.strip())


def text(answer: str, truth: str, record: Record) -> float | None:
    """Equal but for case, white space, articles and trailing punctuation."""
    return float(normalise(answer) == normalise(truth))


def normalise(value: str) -> str:
    """Lower case, single spaces, no articles, no trailing punctuation."""
    words = re.sub(r"\b(?:a|an|the)\b", " ", value.lower())
    return " ".join(words.split()).rstrip(".!?,;: ")


def mcq(answer: str, truth: str, record: Record) -> float | None:
    """The same letter, or the text of the right option."""
    right = choice(truth, record)
    return None if right is None else float(choice(answer, record) == right)


def choice(value: str, record: Record) -> str | None:
    """The letter that an answer names, or whose option it repeats."""
    options = [normalise(re.sub(r"^\s*\(?[A-Za-z][).:]\s*", "", option)) for option in record.options]
    if normalise(value) in options:
        return chr(ord("a") + options.index(normalise(value)))
    match = LETTER.match(value.strip()) or re.match(r"^([A-Z])\s+(?=\S)", value.strip())
    if match is None or (not options and re.match(r"^[A-Z]\s+\S", value.strip())):
        return None if match is None else match[1].lower() if match.re is LETTER else None
    rest = normalise(value.strip()[match.end() :])
    return match[1].lower() if match.re is LETTER or rest in options else None


def yes_no(answer: str, truth: str, record: Record) -> float | None:
    """The same of yes and no, as whole words; not applicable when the truth is neither."""
    right = {word.lower() for word in YES_NO.findall(truth)}
    if len(right) != 1:
        return None
    return float({word.lower() for word in YES_NO.findall(answer)} == right)


def number(value: str) -> tuple[float, str, bool] | None:
    """Value, unit and whether it is an integer; None when the text is not one number with an optional unit."""
    match = NUMBER.fullmatch(value.strip().rstrip("."))
    if match is None or not (match[2] or match[3]) or re.match(r"[-–/:]?\d", match[6]):
        return None
    if re.match(r"[-–]\s*\d", match[6]):
        return None
    mantissa = (match[2] or "0").replace(",", "") + (match[3] or "")
    size = float(f"{mantissa}e{match[4] or 0}")
    if match[5]:
        if int(match[5]) == 0:
            return None
        size /= int(match[5])
    whole = not (match[3] or match[4] or match[5])
    return (-size if match[1] == "-" else size), normalise(match[6]), whole


def numeric(answer: str, truth: str, record: Record) -> float | None:
    """The same number in the same unit; not applicable when the truth is not a number."""
    right = number(truth)
    if right is None:
        return None
    given = number(answer)
    if given is None or given[1] != right[1]:
        return 0.0
    if right[2]:
        return float(given[0] == right[0])
    return float(abs(given[0] - right[0]) <= RELATIVE_TOLERANCE * abs(right[0]))


def symbolic(answer: str, truth: str, record: Record) -> float | None:
    """Equal as mathematics, by math-verify with the truth as gold."""
    from math_verify import parse, verify

    return float(bool(verify(parse(_dollars(truth)), parse(_dollars(answer)))))


def _dollars(value: str) -> str:
    return value if "$" in value or "\\boxed" in value else f"${value}$"


def as_list(value: Any) -> list[str]:
    """The items of a JSON list or of text separated by commas."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = value.split(",")
    items = value if isinstance(value, list) else [value]
    return [normalise(item if isinstance(item, str) else json.dumps(item, sort_keys=True)) for item in items]


def all_match(answer: str, truth: str, record: Record) -> float | None:
    """The same items, each as often, in any order."""
    return float(Counter(as_list(answer)) == Counter(as_list(truth)))


def list_in_order(answer: str, truth: str, record: Record) -> float | None:
    """The same items in the same order."""
    return float(as_list(answer) == as_list(truth))


def auto(answer: str, truth: str, record: Record) -> float | None:
    """By the type of the true answer: choice, yes or no, number, list, otherwise text."""
    if record.options and choice(truth, record) is not None:
        return mcq(answer, truth, record)
    if normalise(truth) in ("yes", "no"):
        return yes_no(answer, truth, record)
    if number(truth) is not None:
        return numeric(answer, truth, record)
    if truth.lstrip().startswith("["):
        return all_match(answer, truth, record)
    return text(answer, truth, record)


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


def accuracy_reward(completion: str, record: Record) -> float | None:
    """1.0 for the right answer by the record's method, 0.0 for a wrong one or none; None without a true answer."""
    if record.answer is None:
        return None
    answer = parse_answer(completion, record.task)
    return 0.0 if answer is None else METHODS[record.method or "auto"](answer, gold(record.answer), record)


def gold(value: Any) -> str:
    """The true answer as text: tags unwrapped, lists and objects as JSON."""
    if isinstance(value, str):
        return extract_answer(value) or value.strip()
    return json.dumps(value)
