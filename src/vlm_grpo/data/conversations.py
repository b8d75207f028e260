"""Parse conversations in LLaVA's format (from, value) or as chat messages (role, content)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from vlm_grpo.data.errors import FieldProblem, show_value
from vlm_grpo.prompts import MARKER

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass
class Conversation:
    """The question of a conversation, its history and its gold answer.

    `inline` has an entry for every marker in the user turns: None, or the image embedded in the message itself.
    `answer_field` names the turn with the answer; None if the conversation ends with a question.
    """

    question: str = ""
    system: str | None = None
    history: list[dict[str, str]] = field(default_factory=list)
    answer: object = None
    answer_field: str | None = None
    images: list[object] | None = None

    @property
    def inline(self) -> list[object]:
        return [None] * self.question.count(MARKER) if self.images is None else self.images


def read_turns(value: object, key: str) -> tuple[Conversation, list[FieldProblem]]:
    """Parse a list of turns into a conversation and its problems.

    Roles: system at most once and first, then human and gpt alternating, starting with human.
    """
    if not isinstance(value, list | tuple) or not value:
        found = f"{type(value).__name__} {show_value(value)}"
        return Conversation(), [(key, found, "a list of turns: human, then gpt")]
    problems: list[FieldProblem] = []
    turns = [_turn(turn, f"{key}[{number}]", problems) for number, turn in enumerate(value)]
    if problems:
        return Conversation(), problems
    roles = [role for role, _ in turns]
    dialogue = roles[roles[0] == "system" :]
    if not dialogue or dialogue != (["user", "assistant"] * len(dialogue))[: len(dialogue)]:
        return Conversation(), [
            (key, f"turns {', '.join(roles)}", "alternating user (human) and assistant (gpt) turns")
        ]
    return _conversation(turns, key, problems), problems


def _turn(turn: object, field_name: str, problems: list[FieldProblem]) -> tuple[str, object]:
    expected = '{"from": "human" or "gpt" or "system", "value": ...}'
    if not isinstance(turn, Mapping):
        problems.append((field_name, f"{type(turn).__name__} {show_value(turn)}", expected))
        return "", None
    speaker = turn.get("from", turn.get("role"))
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    name = "value" if turn.get("value") is not None else "content"
    if role is None:
        problems.append((f"{field_name}.from", show_value(speaker), f"one of {', '.join(ROLES)}"))
    elif turn.get(name) is None:
        problems.append((f"{field_name}.value", "missing or null", expected))
    return role or "", turn.get(name)


def _conversation(turns: list[tuple[str, object]], key: str, problems: list[FieldProblem]) -> Conversation:
    conversation = Conversation(images=[])
    last = len(turns) - 1
    for number, (role, content) in enumerate(turns):
        if role == "assistant" and number == last:
            conversation.answer, conversation.answer_field = _gold(content), f"{key}[{number}].value"
            continue
        if role == "assistant" and not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False)
        text, images = _flatten(content, f"{key}[{number}].value", problems)
        if role == "user":
            conversation.images = [*(conversation.images or []), *images]
        elif any(image is not None for image in images):
            problems.append((f"{key}[{number}].value", "an image", f"text only, in a turn with role {role}"))
        if role == "system":
            conversation.system = text
        elif number >= last - (turns[-1][0] == "assistant"):
            conversation.question = text
        else:
            conversation.history.append({"role": role, "content": text})
    if not conversation.question.strip() and not problems:
        problems.append((key, "an empty question", "text in the human turn"))
    return conversation


def _gold(content: object) -> object:
    """Return the gold answer of a turn: text blocks are joined, other lists and objects are kept as JSON."""
    if isinstance(content, list) and content and all(_is_text_block(block) for block in content):
        return "".join(block["text"] for block in content)
    return content


def _is_text_block(block: object) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str)


def _flatten(content: object, field_name: str, problems: list[FieldProblem]) -> tuple[str, list[object]]:
    """Return the text with a marker for every image, and a list with the image of each marker, or None."""
    if isinstance(content, str):
        return content, [None] * content.count(MARKER)
    if not isinstance(content, list | tuple):
        problems.append((field_name, f"{type(content).__name__} {show_value(content)}", "text"))
        return "", []
    text = ""
    images: list[object] = []
    for number, block in enumerate(content):
        if _is_text_block(block):
            text += block["text"]
            images += [None] * block["text"].count(MARKER)
        elif isinstance(block, Mapping) and block.get("type") == "image":
            text += MARKER
            images.append(next((block[name] for name in ("image", "url", "path") if block.get(name)), None))
        else:
            expected = 'blocks {"type": "text", "text": ...} or {"type": "image"}; videos belong in a column'
            problems.append((f"{field_name}[{number}]", show_value(block), expected))
    return text, images
