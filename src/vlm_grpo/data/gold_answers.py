"""Normalize gold answers from the formats of data sets to the format that rewards expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vlm_grpo.answer_parser import ground_truth_text, python_literal
from vlm_grpo.boxes import boxes_in
from vlm_grpo.rewards.detection import EMPTY_LIST_TEXTS
from vlm_grpo.rewards.mcq import normalize_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ONE_ANSWER = (
    "the same answer as in the gpt turn; choose the column with --answer_key {0}, or the turn with --ignore_columns {0}"
)
VERL = "reward_model"  # verl's column: {"style": "rule", "ground_truth": ...}


def unwrap_answer(value: object) -> object:
    """Return the answer inside an assistant chat message or verl's reward model; any other value unchanged."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"role", "content"} and value["role"] == "assistant":
        return value["content"]
    return value["ground_truth"] if "ground_truth" in value and "style" in value else value


def answers_equal(first: object, second: object) -> bool:
    """Return whether two gold answers are equal as text, as JSON, or as boxes."""
    texts = [ground_truth_text(unwrap_answer(value)) for value in (first, second)]
    boxes = [boxes_in(text) for text in texts]
    return normalize_text(texts[0]) == normalize_text(texts[1]) or (bool(boxes[0]) and boxes[0] == boxes[1])


def option_letter(value: object, options: Sequence[str]) -> tuple[object, str | None]:
    """Convert an option index from 0, as in ScienceQA, to the option's letter; return other values unchanged.

    The second result says what was expected if the number is not an index or is ambiguous. A number that is the text of
    an option, and not the index of another one, means that option.
    """
    if type(value) is not int or not options:
        return value, None
    texts = [option.strip() for option in options]
    text_index = texts.index(str(value)) if str(value) in texts else None
    number_index = value if 0 <= value < len(options) else None
    index = number_index if text_index is None else text_index
    if index is None:
        return value, f"the number of one of the {len(options)} options, counted from 0, or its letter or text"
    if text_index is not None and number_index is not None and number_index != text_index:
        letters = LETTERS[text_index], LETTERS[number_index]
        return value, "a letter: it is the text of option {} and the number of {}".format(*letters)
    return LETTERS[index], None


def parse_shape_answer(value: object, *, is_list: bool) -> object:
    """Parse a gold answer of boxes or masks; Python literals are accepted like JSON.

    Args:
        is_list: a list of detections, for which some texts mean "nothing".
    """
    if not isinstance(value, str):
        return value
    if is_list and normalize_text(value) in EMPTY_LIST_TEXTS:
        return []
    return python_literal(value)


def is_finite(value: object) -> bool:
    """Return whether all numbers in a value are finite; in JSON, 1e999 is infinity."""
    if isinstance(value, list | dict):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def strip_option_letters(options: list[str]) -> tuple[str, ...]:
    """Return the options without their letters if all options have one (`A. dog`, `(B) cat`)."""
    texts = []
    for letter, option in zip(LETTERS, options, strict=False):
        text = option.strip()
        start = next((s for s in (f"({letter})", f"{letter}.", f"{letter})", f"{letter}:") if text.startswith(s)), None)
        stripped = text[len(start) :].strip() if start else ""
        if not stripped:
            return tuple(options)
        texts.append(stripped)
    return tuple(texts)
