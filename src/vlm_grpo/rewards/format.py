"""Whether a completion has the form that its task asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vlm_grpo.answer_parser import CLOSE, OPEN, extract_boxed, extract_json, plain_thoughts, unboxed
from vlm_grpo.boxes import is_marked_box
from vlm_grpo.masks import shape_fault
from vlm_grpo.records import Record
from vlm_grpo.rewards.mask import asked_terms

WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
ANSWER_ONLY = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
OPENED = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>((?:(?!</?think>).)*)", re.DOTALL)
THOUGHTLESS = ("vqa", "grounding")  # tasks whose completions hold no thought unless the prompt has opened one
BOXES = ("rec", "grounding")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(completion: str, record: Record) -> float:
    """Return 1.0 when the whole turn is what the task asks for, and nothing else; otherwise 0.0.

    vqa: one JSON object with exactly `reasoning_steps` and `answer`. grounding: one answer block. All others: one think
    block, one answer block. What must stand in the answer block is in ANSWER_FORMS; for seg it is a shape with the
    record's number of terms, for rec and grounding one box as JSON or in the markup of a family.

    Where the prompt has opened or skipped a thought (`turn_opening`), the turn of every task begins with that thought,
    which may mention any tag but its own.
    """
    text, opening = plain_thoughts(completion), plain_thoughts(record.extra.get("turn_opening") or "")
    if OPEN in opening or CLOSE in opening:
        opened = OPENED.fullmatch(text if OPEN in opening else OPEN + text)
        if opened is None:
            return 0.0
        text = opened[1] if record.task in THOUGHTLESS else f"{OPEN}{CLOSE}{opened[1]}"
    return _form(text, record)


def _form(text: str, record: Record) -> float:
    if record.task == "vqa":
        return float(_is_vqa(unboxed(text)))
    answer = _only_answer(text) if record.task == "grounding" else _answer_of_whole(text)
    if answer is not None and record.task not in BOXES:
        answer = unboxed(answer)
    if record.task == "seg":
        return float(answer is not None and shape_fault(answer, asked_terms(record)) is None)
    return float(answer is not None and ANSWER_FORMS.get(record.task, bool)(answer))


def _answer_of_whole(text: str) -> str | None:
    match = WHOLE.fullmatch(text)
    whole = match is not None and all(text.count(tag) == 1 for tag in TAGS)
    return (match[2].strip() or None) if whole else None


def _only_answer(text: str) -> str | None:
    """What the answer block holds, when the text is one and nothing else."""
    match = ANSWER_ONLY.fullmatch(text)
    whole = match is not None and not any(tag in match[1] for tag in TAGS)
    return (match[1].strip() or None) if whole else None


def _is_vqa(text: str) -> bool:
    value = extract_json(text)
    if not isinstance(value, dict) or set(value) != {"reasoning_steps", "answer"}:
        return False
    steps = value["reasoning_steps"]
    listed = isinstance(steps, list) and bool(steps) and all(isinstance(s, str) and s.strip() for s in steps)
    return listed and isinstance(value["answer"], str) and bool(value["answer"].strip())


def _are_corners(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)


def _is_detections(answer: str) -> bool:
    """`None`, or a list of boxes that are all {"Position", "Confidence"} or all {"bbox_2d", "label"}."""
    value = extract_json(answer)
    if not isinstance(value, list):
        return answer == "None"
    is_form = _is_confident if value and isinstance(value[0], dict) and "Position" in value[0] else _is_labelled
    return bool(value) and all(isinstance(item, dict) and is_form(item) for item in value)


def _is_confident(item: dict[str, Any]) -> bool:
    if not {"Position", "Confidence"} <= set(item) <= {"Position", "Confidence", "label"}:
        return False
    confidence, label = item["Confidence"], item.get("label", "")
    sure = type(confidence) in (int, float) and 0 <= confidence <= 1
    return sure and isinstance(label, str) and _are_corners(item["Position"])


def _is_labelled(item: dict[str, Any]) -> bool:
    return set(item) == {"bbox_2d", "label"} and isinstance(item["label"], str) and _are_corners(item["bbox_2d"])


def _is_boxed(answer: str) -> bool:
    r"""The answer is one `\boxed{...}`, with something in it and nothing around it."""
    inside = extract_boxed(answer)
    return inside is not None and answer.startswith("\\boxed{") and answer[len("\\boxed{") : -1].strip() == inside


# What must stand in the answer block; any text where a task is not named.
ANSWER_FORMS: Mapping[str, Callable[[str], bool]] = {
    "rec": is_marked_box,
    "grounding": is_marked_box,
    "ovd": _is_detections,
    "math": _is_boxed,
}
