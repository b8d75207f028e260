"""Reward for a completion in the format of its task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vlm_grpo.answer_parser import CLOSE, OPEN, extract_boxed, extract_json, normalize_thinking_tags, strip_glm_box
from vlm_grpo.boxes import is_marked_box
from vlm_grpo.masks import validate_shape
from vlm_grpo.records import Record
from vlm_grpo.rewards.mask import expected_terms

THINK_AND_ANSWER = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
ANSWER_ONLY = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
OPENED_THINKING = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>((?:(?!</?think>).)*)", re.DOTALL)
TASKS_WITHOUT_THINKING = (
    "vqa",
    "grounding",
)  # no thinking block is expected unless the prompt opens one
BOX_TASKS = ("rec", "grounding")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(completion: str, record: Record) -> float:
    """Return 1.0 if the whole turn has exactly the format of the task, else 0.0.

    vqa: one JSON object with exactly the keys `reasoning_steps` and `answer`. grounding: one answer block. All others:
    one think block followed by one answer block. ANSWER_FORMATS defines the content of the answer block; for seg it is
    a shape with the record's number of terms, for rec and grounding one box as JSON or in the markup of a model family.

    If the prompt opens or skips a thinking block (`turn_opening`), the turn starts with that block in every task. The
    block may contain any tag except its own.
    """
    text, opening = normalize_thinking_tags(completion), normalize_thinking_tags(record.extra.get("turn_opening") or "")
    if OPEN in opening or CLOSE in opening:
        match = OPENED_THINKING.fullmatch(text if OPEN in opening else OPEN + text)
        if match is None:
            return 0.0
        text = match[1] if record.task in TASKS_WITHOUT_THINKING else f"{OPEN}{CLOSE}{match[1]}"
    return _format_score(text, record)


def _format_score(text: str, record: Record) -> float:
    if record.task == "vqa":
        return float(_is_vqa(strip_glm_box(text)))
    answer = _only_answer(text) if record.task == "grounding" else _think_and_answer(text)
    if answer is not None and record.task not in BOX_TASKS:
        answer = strip_glm_box(answer)
    if record.task == "seg":
        return float(answer is not None and validate_shape(answer, expected_terms(record)) is None)
    return float(answer is not None and ANSWER_FORMATS.get(record.task, bool)(answer))


def _think_and_answer(text: str) -> str | None:
    match = THINK_AND_ANSWER.fullmatch(text)
    if match is None or any(text.count(tag) != 1 for tag in TAGS):
        return None
    return match[2].strip() or None


def _only_answer(text: str) -> str | None:
    """Return the content of the answer block if the text is nothing else."""
    match = ANSWER_ONLY.fullmatch(text)
    if match is None or any(tag in match[1] for tag in TAGS):
        return None
    return match[1].strip() or None


def _is_vqa(text: str) -> bool:
    value = extract_json(text)
    if not isinstance(value, dict) or set(value) != {"reasoning_steps", "answer"}:
        return False
    steps = value["reasoning_steps"]
    listed = isinstance(steps, list) and bool(steps) and all(isinstance(s, str) and s.strip() for s in steps)
    return listed and isinstance(value["answer"], str) and bool(value["answer"].strip())


def _are_corners(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)


def _is_detections(answer: str) -> bool:
    """Accept `None`, or a list of boxes that are all {"Position", "Confidence"} or all {"bbox_2d", "label"}."""
    value = extract_json(answer)
    if not isinstance(value, list):
        return answer == "None"
    is_form = _is_confident if value and isinstance(value[0], dict) and "Position" in value[0] else _is_labelled
    return bool(value) and all(isinstance(item, dict) and is_form(item) for item in value)


def _is_confident(item: Mapping[str, object]) -> bool:
    if not {"Position", "Confidence"} <= set(item) <= {"Position", "Confidence", "label"}:
        return False
    confidence, label = item["Confidence"], item.get("label", "")
    sure = isinstance(confidence, int | float) and not isinstance(confidence, bool) and 0 <= confidence <= 1
    return sure and isinstance(label, str) and _are_corners(item["Position"])


def _is_labelled(item: Mapping[str, object]) -> bool:
    return set(item) == {"bbox_2d", "label"} and isinstance(item["label"], str) and _are_corners(item["bbox_2d"])


def _is_boxed(answer: str) -> bool:
    r"""Return whether the answer is one non-empty `\boxed{...}` and nothing else."""
    inside = extract_boxed(answer)
    return inside is not None and answer.startswith("\\boxed{") and answer[len("\\boxed{") : -1].strip() == inside


# Required content of the answer block; any text for other tasks.
ANSWER_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "rec": is_marked_box,
    "grounding": is_marked_box,
    "ovd": _is_detections,
    "math": _is_boxed,
}
