"""Parse completions: the one answer parser for rewards, evaluation and logs."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from typing import NoReturn

from vlm_grpo.records import Completion

# Thinking delimiters of model families, normalized to the first: Mistral, Gemma 4, Kimi, Cohere, Seed.
THINKING_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)
OPEN, CLOSE = THINKING_TAGS[0]
OTHER_MARKS = {mark: plain for pair in THINKING_TAGS[1:] for mark, plain in zip(pair, (OPEN, CLOSE), strict=True)}
OTHER_MARK = re.compile("|".join(map(re.escape, OTHER_MARKS)))
OPENING_MARK, CLOSING_MARK = (re.compile("|".join(map(re.escape, marks))) for marks in zip(*THINKING_TAGS, strict=True))
TRAILING_THOUGHT = re.compile(rf"(?:{OPENING_MARK.pattern})\s*(?:(?:{CLOSING_MARK.pattern})\s*)?\Z")
THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)
BOXED = re.compile(r"<\|begin_of_box\|>((?:(?!<\|begin_of_box\|>).)*?)<\|end_of_box\|>", re.DOTALL)  # GLM's
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")


FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}  # full-width ASCII, and its space
MEANINGFUL_PUNCTUATION = frozenset("%#&*@/\\'\"‰")  # punctuation that is meaningful at the end of an answer


def normalize_width(text: str) -> str:
    """Return the text with composed accents and with full-width ASCII characters replaced by plain ones."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(FULL_WIDTH))


def normalize_nfkc(text: str) -> str:
    """Return the text in Unicode normalization form NFKC."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def strip_end_punctuation(text: str) -> str:
    """Remove whitespace and punctuation of any script at the end of a text."""
    end = len(text)
    while end and (text[end - 1].isspace() or _is_end_mark(text[end - 1])):
        end -= 1
    return text[:end]


def _is_end_mark(character: str) -> bool:
    return unicodedata.category(character) == "Po" and character not in MEANINGFUL_PUNCTUATION


def completion_text(completion: Completion) -> str:
    """Return the text of a completion: itself, or the last assistant message of a conversation."""
    if isinstance(completion, str):
        return completion
    for message in reversed(completion or []):
        if message.get("role") == "assistant":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "".join(block.get("text", "") for block in content)
    return ""


def normalize_thinking_tags(text: str) -> str:
    """Replace the thinking delimiters of other families by `<think>` and `</think>`."""
    return OTHER_MARK.sub(lambda mark: OTHER_MARKS[mark[0]], text) if OTHER_MARK.search(text) else text


def strip_thinking(text: str) -> str:
    """Return the text without thinking blocks.

    A block that is not closed extends to the end of the text; one that is not opened starts at its beginning.
    """
    text = normalize_thinking_tags(text)
    outside = THINK.sub("", text) if OPEN in text else text
    return outside.rpartition(CLOSE)[2] if CLOSE in outside else outside


def thinking_start(text: str) -> int:
    """Return the position of the first thinking delimiter in a text; its length if it has none.

    It may be a closing one: GLM-5 skips thinking with `</think>` alone.
    """
    positions = [mark.start() for pattern in (OPENING_MARK, CLOSING_MARK) if (mark := pattern.search(text))]
    return min(positions, default=len(text))


def trailing_thinking(prompt: str) -> str:
    """Return an opened or empty thinking block at the end of a prompt in plain text."""
    match = TRAILING_THOUGHT.search(prompt)
    return match[0] if match else ""


def is_inside_thinking(opening: str) -> bool:
    """Return whether a text ends inside a thinking block."""
    text = normalize_thinking_tags(opening)
    return text.rfind(OPEN) > text.rfind(CLOSE)


def remaining_turn(turn: str, opening: str) -> str:
    """Return the rest of a whole assistant turn after the part that is already in the prompt.

    If the prompt ends inside a thinking block, a turn without one closes it first; if the prompt contains a whole
    block, that of the turn is left out.
    """
    if not turn or turn.startswith(opening):
        return turn[len(opening) :]
    end = thinking_start(turn)
    if thinking_start(opening) == len(opening):
        return turn
    is_thought = not turn[:end].strip() and end < len(turn)
    if not is_inside_thinking(opening):
        return THINK.sub("", normalize_thinking_tags(turn), count=1).lstrip() if is_thought else turn
    if is_thought:
        return OPENING_MARK.sub("", turn, count=1).lstrip("\n")
    mark = OPENING_MARK.findall(opening)[-1]
    return f"\n{dict(THINKING_TAGS)[mark]}\n\n{turn}"


def extract_answer(text: str) -> str | None:
    """Return the last answer block outside the thinking; if there is none, the last of GLM's boxes.

    None if there is neither, or if it is empty.
    """
    outside = strip_thinking(text)
    answers = ANSWER.findall(outside) or BOXED.findall(outside)
    return (strip_glm_box(answers[-1]) or None) if answers else None


def strip_glm_box(answer: str) -> str:
    """Return an answer without GLM's box, if the box is the whole answer."""
    answer = answer.strip()
    match = BOXED.fullmatch(answer)
    return match[1].strip() if match else answer


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` outside the thinking, braces balanced; None if missing or empty."""
    text = strip_thinking(text)
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + len("\\boxed"), len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : end].strip() or None
    return None


def extract_json(text: str) -> object:
    """Parse a text that is a single JSON value, optionally in a code fence; None otherwise.

    Objects with duplicate keys, which are ambiguous, and NaN, which is not JSON, also return None.
    """
    fenced = FENCE.match(text) if "```" in text else None
    try:
        return json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is repeated")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def python_literal(text: str) -> object:
    """Parse a list or object in JSON or as a Python literal; return any other text unchanged."""
    stripped = text.strip()
    if not stripped.startswith(("[", "{")):
        return text
    value = extract_json(stripped)
    if value is None:
        try:
            value = ast.literal_eval(stripped)
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text
    return value if isinstance(value, list | dict) else text


def parse_answer(text: str, task: str = "default") -> str | None:
    r"""Return the answer of a completion for a task.

    For vqa it is the JSON object's `answer`, text or a number; otherwise the answer block. For math it is the content
    of the last `\boxed{...}` in the answer block, or in the text if there is no answer block.
    """
    if task != "vqa":
        answer = extract_answer(text)
        return answer if task != "math" else extract_boxed(text if answer is None else answer) or answer
    value = extract_json(strip_glm_box(strip_thinking(text)))
    answer = value.get("answer") if isinstance(value, dict) else None
    if type(answer) in (int, float):
        return str(answer)
    return (answer.strip() or None) if isinstance(answer, str) else None


def parse_steps(text: str, task: str = "default") -> list[str]:
    """Return a completion's reasoning steps: `reasoning_steps` of the JSON for vqa, else sentences of the thinking."""
    if task != "vqa":
        thought = "\n".join(THINK.findall(normalize_thinking_tags(text)))
        return [step.strip() for step in SENTENCE_END.split(thought) if step.strip()]
    value = extract_json(strip_glm_box(strip_thinking(text)))
    steps = value.get("reasoning_steps") if isinstance(value, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return []
    return [step.strip() for step in steps if step.strip()]


encode_json = json.JSONEncoder(ensure_ascii=False).encode  # created once: json.dumps creates one per call


def ground_truth_text(answer: object) -> str:
    """Return a record's gold answer as text: tags are removed, lists and objects become JSON."""
    if isinstance(answer, str):
        return (extract_answer(answer) if "<answer>" in answer else None) or answer.strip()
    return encode_json(answer)
