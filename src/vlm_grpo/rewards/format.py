"""Whether a completion has the form that its task asks for."""

from __future__ import annotations

import re

from vlm_grpo.records import Record
from vlm_grpo.text import extract_json

WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(completion: str, record: Record) -> float:
    """1.0 when the whole text is what the task asks for, and nothing else; otherwise 0.0.

    vqa: one JSON object with exactly `reasoning_steps` and `answer`. All others: one think block, one answer block,
    and for rec a JSON object with exactly `bbox_2d` in it.
    """
    if record.task == "vqa":
        return float(_is_vqa(completion))
    answer = _answer_of_whole(completion)
    return float(answer is not None and (record.task != "rec" or _is_box(answer)))


def _answer_of_whole(text: str) -> str | None:
    match = WHOLE.fullmatch(text)
    whole = match is not None and all(text.count(tag) == 1 for tag in TAGS)
    return (match[2].strip() or None) if whole else None


def _is_vqa(text: str) -> bool:
    value = extract_json(text)
    if not isinstance(value, dict) or set(value) != {"reasoning_steps", "answer"}:
        return False
    steps = value["reasoning_steps"]
    listed = isinstance(steps, list) and bool(steps) and all(isinstance(s, str) and s.strip() for s in steps)
    return listed and isinstance(value["answer"], str) and bool(value["answer"].strip())


def _is_box(answer: str) -> bool:
    value = extract_json(answer)
    box = value.get("bbox_2d") if isinstance(value, dict) and set(value) == {"bbox_2d"} else None
    return isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
