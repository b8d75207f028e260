"""What a completion says: the one parser for rewards, evaluation and logs."""

from __future__ import annotations

import json
import re
from typing import Any

THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")


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


def without_thinking(text: str) -> str:
    """The text outside its think blocks; a block that never ends swallows the rest."""
    return THINK.sub("", text) if "<think>" in text else text


def extract_answer(text: str) -> str | None:
    """The last answer block outside the thinking; None without one or when it is empty."""
    found = ANSWER.findall(without_thinking(text))
    return (found[-1].strip() or None) if found else None


def extract_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` outside the thinking holds, braces balanced; None for none or an empty one."""
    text = without_thinking(text)
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + len("\\boxed"), len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : end].strip() or None
    return None


def extract_json(text: str) -> Any | None:
    """The JSON value that the whole text is (a code fence around it is allowed); None if it is none.

    An object that repeats a key says two things at once, and NaN is no JSON: both give None.
    """
    fenced = FENCE.match(text) if "```" in text else None
    try:
        return json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def parse_answer(text: str, task: str = "default") -> str | None:
    r"""The answer of a completion for a task.

    The JSON object's `answer` for vqa; the answer block elsewhere, for math what the last `\boxed{...}` in it holds, or
    without an answer block the last one in the text.
    """
    if task != "vqa":
        answer = extract_answer(text)
        return answer if task != "math" else extract_boxed(text if answer is None else answer) or answer
    value = extract_json(text)
    answer = value.get("answer") if isinstance(value, dict) else None
    return (answer.strip() or None) if isinstance(answer, str) else None


def parse_steps(text: str, task: str = "default") -> list[str]:
    """The reasoning steps of a completion: the JSON object's `reasoning_steps` for vqa, else the thought sentences."""
    if task != "vqa":
        thought = "\n".join(THINK.findall(text))
        return [step.strip() for step in SENTENCE_END.split(thought) if step.strip()]
    value = extract_json(text)
    steps = value.get("reasoning_steps") if isinstance(value, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return []
    return [step.strip() for step in steps if step.strip()]
