"""Whether a completion has the form that its task asks for."""

from __future__ import annotations

import json
import re

from vlm_grpo.records import Record
from vlm_grpo.text import extract_answer, extract_json

WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(completion: str, record: Record) -> float:
    """1.0 when the whole text is what the task asks for, and nothing else; otherwise 0.0."""
    if record.task == "vqa":
        return float(_is_vqa(completion))
    if not _is_think_answer(completion):
        return 0.0
    return float(record.task != "rec" or _is_box(extract_answer(completion) or ""))


def _is_think_answer(text: str) -> bool:
    match = WHOLE.fullmatch(text)
    return bool(match and match[2].strip() and all(text.count(tag) == 1 for tag in TAGS))


def _is_vqa(text: str) -> bool:
    value = extract_json(text)
    if not isinstance(value, dict) or set(value) != {"reasoning_steps", "answer"}:
        return False
    steps = value["reasoning_steps"]
    listed = isinstance(steps, list) and bool(steps) and all(isinstance(s, str) and s.strip() for s in steps)
    return listed and isinstance(value["answer"], str) and bool(value["answer"].strip())


def _is_box(answer: str) -> bool:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    box = value.get("bbox_2d") if isinstance(value, dict) and set(value) == {"bbox_2d"} else None
    return isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
