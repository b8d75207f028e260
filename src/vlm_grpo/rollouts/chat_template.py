"""A model's chat template: in which shape it shows messages, and what it has already opened of the assistant's turn.

Both are found by rendering small conversations and looking at the text, never by the name of a family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from vlm_grpo.answer_parser import remaining_turn, thinking_start, trailing_thinking
from vlm_grpo.envs.environment import merge_text_blocks

PROBE = "(what was said)"  # stands for content while a template is looked at
REPR = re.compile(r"""['"]text['"]: ?['"]""" + re.escape(PROBE))  # a list of blocks, printed
ROLES = ("system", "user", "assistant", "tool")
CALL = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}

Messages = list[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class Opening(NamedTuple):
    """What a prompt has written of the assistant's turn.

    `by_template` is `<think>\\n` or `<think>\\n\\n</think>\\n\\n` where the template begins with a thought. `by_row` is
    what a last turn of the assistant in the row adds to it.
    """

    by_template: str
    by_row: str


class ChatTemplate:
    """The chat template of a processor or tokenizer.

    Args:
        processor: anything with `apply_chat_template`.
        options: keyword arguments of every rendering, such as `enable_thinking`.
    """

    def __init__(self, processor: Any, options: Mapping[str, Any]) -> None:
        self.processor = processor
        self.options = dict(options)
        self._takes_blocks: dict[tuple[str, bool], bool] = {}
        self._headers: dict[bool, str] = {}

    def render(self, messages: Messages, tools: Tools | None = None, *, is_prompt: bool = True) -> str:
        """Return the text that the template makes of messages; as a prompt it begins the assistant's turn."""
        return self._render(self.shaped(messages, tools), tools, is_prompt)

    def shaped(self, messages: Messages, tools: Tools | None = None) -> Messages:
        """Return the messages as the template shows them: neighbouring text joined, turns of text as plain strings
        where blocks would be printed or dropped.
        """
        return [self._shaped(message, tools) for message in messages]

    def opening(self, messages: Messages | str, tools: Tools | None = None) -> Opening:
        """Return what a prompt has already written of the assistant's turn, after the header of its role."""
        if isinstance(messages, str):
            return Opening(trailing_thinking(messages), "")
        messages, begun = turn_begun(messages)
        opened = self._opened(messages, tools)
        return Opening(opened, remaining_turn(begun, opened))

    def _opened(self, messages: Messages, tools: Tools | None) -> str:
        messages = self.shaped(messages, tools)
        prompt, before = self._render(messages, tools, True), self._render(messages, tools, False)
        return after_header(prompt, common_length(prompt, before), self._header(tools))

    def _shaped(self, message: dict[str, Any], tools: Tools | None) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        blocks = merge_text_blocks(content)
        is_text = all(block["type"] == "text" for block in blocks) and message["role"] in ROLES
        if is_text and not self._shows_blocks(message["role"], tools):
            return {**message, "content": "".join(block["text"] for block in blocks)}
        return {**message, "content": blocks}

    def _shows_blocks(self, role: str, tools: Tools | None) -> bool:
        """Whether blocks of text are shown as they are in turns of a role, or strings are not either."""
        key = (role, bool(tools))
        if key not in self._takes_blocks:
            shows = [self._shows(role, content, tools) for content in (_block(PROBE), PROBE)]
            self._takes_blocks[key] = shows[0] or not shows[1]
        return self._takes_blocks[key]

    def _shows(self, role: str, content: Any, tools: Tools | None) -> bool:
        try:
            text = self._render(self._conversation(role, content, tools), tools, False)
        except (TemplateError, TypeError):
            return False
        return PROBE in text and not REPR.search(text)

    def _conversation(self, role: str, content: Any, tools: Tools | None) -> Messages:
        """The shortest conversation with a turn of a role that templates accept."""
        turn = {"role": role, "content": content}
        if role == "user":
            return [turn]
        asked = self._shaped({"role": "user", "content": _block("?")}, tools)
        if role == "tool":
            called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
            return [asked, called, {**turn, "name": CALL["function"]["name"], "tool_call_id": CALL["id"]}]
        return [turn, asked] if role == "system" else [asked, turn, asked]

    def _header(self, tools: Tools | None) -> str:
        """What the template writes before the content of an assistant's turn, without a thought; empty if unknown."""
        if bool(tools) not in self._headers:
            self._headers[bool(tools)] = self._find_header(tools)
        return self._headers[bool(tools)]

    def _find_header(self, tools: Tools | None) -> str:
        turns = self.shaped(self._conversation("assistant", _block(PROBE), tools), tools)
        try:
            before, after = self._render(turns[:1], tools, False), self._render(turns, tools, False)
        except (TemplateError, TypeError):
            return ""
        said = after.find(PROBE)
        header = after[common_length(before, after) : said] if said >= 0 else ""
        return header[: thinking_start(header)]

    def _render(self, messages: Messages, tools: Tools | None, is_prompt: bool) -> str:
        options = {**({"tools": list(tools)} if tools else {}), **self.options}
        return self.processor.apply_chat_template(messages, add_generation_prompt=is_prompt, tokenize=False, **options)


def after_header(prompt: str, start: int, header: str) -> str:
    """Return the text of a prompt after the header of its last turn.

    Args:
        prompt: ends with a turn that is begun.
        start: where the prompt differs from one without that turn.
        header: of a turn that the assistant has finished. A header that begins the same way is left out too, so that
            `Assistant:` is known by `Assistant: `.
    """
    name, tail = header.rstrip(), prompt[start:]
    found = prompt.rfind(name) + len(name)
    if name in prompt and found > start and name:
        rest, space = prompt[found:], header[len(name) :]
        return rest.removeprefix(space) if rest.startswith(space) else rest
    return "" if name and name.startswith(tail.rstrip()) else tail


def common_length(first: str, second: str) -> int:
    """Return how many characters at their beginning two texts have in common."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def turn_begun(messages: Messages) -> tuple[Messages, str]:
    """Return the messages without a last turn of the assistant, and its text: the beginning of the answer."""
    if not messages or messages[-1].get("role") != "assistant":
        return messages, ""
    content = messages[-1]["content"]
    text = content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
    return messages[:-1], text


def _block(text: str) -> Messages:
    return [{"type": "text", "text": text}]
