"""What a completion says: the one parser for rewards, evaluation and logs."""

from __future__ import annotations

import json
import re
from typing import Any

THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the last assistant message of a conversation."""
    if isinstance(completion, str):
        return completion
    for message in reversed(completion or []):
        if message.get("role") == "assistant":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "".join(block.get("text", "") for block in content)
    return ""


def extract_answer(text: str) -> str | None:
    """The last answer block outside the thinking; None without one or when it is empty."""
    found = ANSWER.findall(THINK.sub("", text))
    return (found[-1].strip() or None) if found else None


def extract_json(text: str) -> Any | None:
    """The JSON value that the whole text is (a code fence around it is allowed); None if it is none."""
    fenced = FENCE.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None


def parse_answer(text: str, task: str = "default") -> str | None:
    """The answer of a completion for a task: the JSON object's `answer` for vqa, the answer block elsewhere."""
    if task != "vqa":
        return extract_answer(text)
    value = extract_json(text)
    answer = value.get("answer") if isinstance(value, dict) else None
    return (answer.strip() or None) if isinstance(answer, str) else None
