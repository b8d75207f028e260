"""A model's chat template: which message format it renders, and what it writes itself of the assistant's turn.

Both are found by rendering small conversations and inspecting the text, never by the name of a family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from vlm_grpo.answer_parser import remaining_turn, thinking_start, trailing_thinking
from vlm_grpo.envs.environment import merge_text_blocks
from vlm_grpo.records import Conversation, JsonObject, JsonSchema, Message

if TYPE_CHECKING:
    from transformers import ProcessorMixin


PROBE = "(what was said)"  # stands for content while a template is probed
REPR = re.compile(r"""['"]text['"]: ?['"]""" + re.escape(PROBE))  # a list of blocks, printed as Python
ROLES = ("system", "user", "assistant", "tool")
CALL: JsonObject = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}

Tools = Sequence[JsonSchema]


class Opening(NamedTuple):
    """What a prompt already contains of the assistant's turn.

    `from_template` is `<think>\\n` or `<think>\\n\\n</think>\\n\\n` where the template begins with a thought.
    `from_row` is what a last turn of the assistant in the row adds to it.
    """

    from_template: str
    from_row: str


class ChatTemplate:
    """The chat template of a processor or tokenizer.

    Args:
        processor: anything with `apply_chat_template`.
        options: keyword arguments of every rendering, such as `enable_thinking`.
    """

    def __init__(self, processor: ProcessorMixin, options: Mapping[str, object]) -> None:
        self.processor = processor
        self.options = dict(options)
        self._shows_blocks_by_role: dict[tuple[str, bool], bool] = {}
        self._headers: dict[bool, str] = {}

    def render(self, messages: Conversation, tools: Tools | None = None, *, is_prompt: bool = True) -> str:
        """Return the rendered messages; a prompt ends with the header of the assistant's turn."""
        return self._render(self.normalize(messages, tools), tools, is_prompt)

    def normalize(self, messages: Conversation, tools: Tools | None = None) -> Conversation:
        """Return the messages in the format that the template renders.

        Neighbouring text is joined; text turns are plain strings where blocks would be printed as Python or dropped.
        """
        return [self._normalize_message(message, tools) for message in messages]

    def opening(self, messages: Conversation | str, tools: Tools | None = None) -> Opening:
        """Return what a prompt already contains of the assistant's turn, after the header of its role."""
        if isinstance(messages, str):
            return Opening(trailing_thinking(messages), "")
        turns, answer_prefix = split_answer_prefix(messages)
        opening = self._template_opening(turns, tools)
        return Opening(opening, remaining_turn(answer_prefix, opening))

    def _template_opening(self, messages: Conversation, tools: Tools | None) -> str:
        messages = self.normalize(messages, tools)
        prompt, before = self._render(messages, tools, True), self._render(messages, tools, False)
        return after_header(prompt, common_length(prompt, before), self._header(tools))

    def _normalize_message(self, message: Message, tools: Tools | None) -> Message:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        blocks = merge_text_blocks(content)
        is_text = all(block["type"] == "text" for block in blocks) and message["role"] in ROLES
        if is_text and not self._shows_blocks(message["role"], tools):
            return {**message, "content": "".join(block["text"] for block in blocks)}
        return {**message, "content": blocks}

    def _shows_blocks(self, role: str, tools: Tools | None) -> bool:
        """Return whether text blocks are rendered in turns of a role, or strings are not either."""
        key = (role, bool(tools))
        if key not in self._shows_blocks_by_role:
            shows = [self._is_rendered(role, content, tools) for content in (_text_block(PROBE), PROBE)]
            self._shows_blocks_by_role[key] = shows[0] or not shows[1]
        return self._shows_blocks_by_role[key]

    def _is_rendered(self, role: str, content: object, tools: Tools | None) -> bool:
        try:
            text = self._render(self._conversation(role, content, tools), tools, False)
        except (TemplateError, TypeError):
            return False
        return PROBE in text and not REPR.search(text)

    def _conversation(self, role: str, content: object, tools: Tools | None) -> Conversation:
        """Return the shortest conversation with a turn of a role that templates accept."""
        turn = {"role": role, "content": content}
        if role == "user":
            return [turn]
        question = self._normalize_message({"role": "user", "content": _text_block("?")}, tools)
        if role == "tool":
            call_turn = {"role": "assistant", "content": "", "tool_calls": [CALL]}
            return [question, call_turn, {**turn, "name": CALL["function"]["name"], "tool_call_id": CALL["id"]}]
        return [turn, question] if role == "system" else [question, turn, question]

    def _header(self, tools: Tools | None) -> str:
        """Return what precedes the content of an assistant's turn, without a thought; empty if unknown."""
        if bool(tools) not in self._headers:
            self._headers[bool(tools)] = self._find_header(tools)
        return self._headers[bool(tools)]

    def _find_header(self, tools: Tools | None) -> str:
        turns = self.normalize(self._conversation("assistant", _text_block(PROBE), tools), tools)
        try:
            before, after = self._render(turns[:1], tools, False), self._render(turns, tools, False)
        except (TemplateError, TypeError):
            return ""
        start = after.find(PROBE)
        header = after[common_length(before, after) : start] if start >= 0 else ""
        return header[: thinking_start(header)]

    def _render(self, messages: Conversation, tools: Tools | None, is_prompt: bool) -> str:
        options: dict[str, Any] = {**({"tools": list(tools)} if tools else {}), **self.options}
        text = self.processor.apply_chat_template(messages, add_generation_prompt=is_prompt, tokenize=False, **options)
        return str(text)


def after_header(prompt: str, start: int, header: str) -> str:
    """Return the text of a prompt after the header of its last turn.

    Args:
        prompt: ends with an unfinished turn.
        start: where the prompt differs from one without that turn.
        header: of a finished turn of the assistant. Trailing white space may differ: `Assistant:` matches
            `Assistant: `.
    """
    name, tail = header.rstrip(), prompt[start:]
    end = prompt.rfind(name) + len(name)
    if name in prompt and end > start and name:
        rest, space = prompt[end:], header[len(name) :]
        return rest.removeprefix(space) if rest.startswith(space) else rest
    return "" if name and name.startswith(tail.rstrip()) else tail


def common_length(first: str, second: str) -> int:
    """Return the length of the longest common prefix of two texts."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def split_answer_prefix(messages: Conversation) -> tuple[Conversation, str]:
    """Return the messages without a last turn of the assistant, and the text of that turn: the answer's prefix."""
    if not messages or messages[-1].get("role") != "assistant":
        return messages, ""
    content = messages[-1]["content"]
    text = content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
    return messages[:-1], text


def _text_block(text: str) -> Conversation:
    return [{"type": "text", "text": text}]
