"""Tool formats: descriptions of tools in the prompt, parsing of tool calls, and messages with their results.

A tool parser works on messages and text; tokens are handled by `rollouts/observations.py`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_type_hints

from vlm_grpo.answer_parser import extract_json, strip_thinking
from vlm_grpo.envs.environment import Content, Tool, blocks_of, merge_text_blocks, tool_schema
from vlm_grpo.records import Block, JsonObject, JsonSchema, Message
from vlm_grpo.rewards.tool_call import offered_tools
from vlm_grpo.tool_call_formats import TOOL_CALL_FORMATS, Schemas, ToolCall, ToolCallFormat, find_tool_call_format

if TYPE_CHECKING:
    from jinja2 import Template

TOOL_FORMATS = ("auto", "native", "hermes", "tags")
# Placeholder of the generated turn while the text around its results is rendered.
PLACEHOLDER_TURN = "(a turn of the assistant)"


class ToolResult(NamedTuple):
    """The result of a tool call: content for the model, and whether the call failed."""

    name: str
    content: Content
    is_failure: bool = False


class ToolParser(Protocol):
    """The interface that the agent loop uses.

    Attributes:
        is_native: whether the chat template receives the tool schemas itself.
        example: a well-formed call, shown to the model after one that cannot be parsed.
    """

    @property
    def is_native(self) -> bool: ...

    @property
    def example(self) -> str: ...

    def prompt(self, messages: list[Message], schemas: Sequence[JsonSchema]) -> list[Message]:
        """Return the messages with a description of the tools."""

    def calls(self, text: str) -> list[ToolCall]:
        """Return the calls of an assistant turn, in order; `UNREADABLE_CALL` for one that cannot be parsed."""

    def without_calls(self, text: str) -> str:
        """Return the text of an assistant turn without its calls."""

    def turn(self, results: Sequence[ToolResult]) -> tuple[Message, str]:
        """Return an assistant turn with the calls of these results, and the text that it ends with.

        It replaces the generated turn while a chat template renders what follows, and contains PLACEHOLDER_TURN.
        """

    def answer(self, results: Sequence[ToolResult]) -> list[Message]:
        """Return the messages that pass results to the model."""


@dataclass(frozen=True)
class NativeToolParser:
    """Tool parser of chat templates that support tools: they receive schemas and `tool` messages.

    Args:
        form: format of calls in the template.
        schemas: JSON schema of each tool's arguments, by name.
    """

    form: ToolCallFormat = TOOL_CALL_FORMATS["hermes"]
    schemas: Schemas = field(default_factory=dict)
    is_native: bool = True

    @property
    def example(self) -> str:
        return self.form.example

    def prompt(self, messages: list[Message], schemas: Sequence[JsonSchema]) -> list[Message]:
        return messages

    def calls(self, text: str) -> list[ToolCall]:
        return self.form.calls(text, self.schemas)

    def without_calls(self, text: str) -> str:
        return self.form.block.sub("", text).strip()

    def turn(self, results: Sequence[ToolResult]) -> tuple[Message, str]:
        functions = [{"name": result.name, "arguments": {"placeholder": PLACEHOLDER_TURN}} for result in results]
        calls = [{"type": "function", "id": call_id(n), "function": each} for n, each in enumerate(functions)]
        return {"role": "assistant", "content": "", "tool_calls": calls}, self.form.end

    def answer(self, results: Sequence[ToolResult]) -> list[Message]:
        return [
            {"role": "tool", "name": result.name, "tool_call_id": call_id(n), "content": blocks_of(result.content)}
            for n, result in enumerate(results)
        ]


def call_id(number: int) -> str:
    """Return an id of nine letters and digits, as required by Mistral's template."""
    return f"call{number:05d}"


@dataclass(frozen=True)
class HermesToolParser:
    """Tool parser of all other templates (Qwen2-VL, Qwen2.5-VL, ...): tools in the system turn, results in a user turn.

    The markup is that of Hermes function calling, on which Qwen's language models were trained:
    `<tools>`, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, `<tool_response>`.
    """

    is_native: bool = False
    example: str = TOOL_CALL_FORMATS["hermes"].example

    def prompt(self, messages: list[Message], schemas: Sequence[JsonSchema]) -> list[Message]:
        return with_system_text(messages, _render("hermes.jinja", tools=[json.dumps(schema) for schema in schemas]))

    def calls(self, text: str) -> list[ToolCall]:
        return TOOL_CALL_FORMATS["hermes"].calls(text)

    def without_calls(self, text: str) -> str:
        return TOOL_CALL_FORMATS["hermes"].block.sub("", text).strip()

    def turn(self, results: Sequence[ToolResult]) -> tuple[Message, str]:
        return {"role": "assistant", "content": blocks_of(PLACEHOLDER_TURN)}, PLACEHOLDER_TURN

    def answer(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "user", "content": _wrap_results(results, "tool_response")}]


@dataclass(frozen=True)
class TagToolParser:
    """One tag per tool, `<search>what to look for</search>`; the text is the tool's first argument.

    Args:
        tools: the tool's name, its first argument and its description, by tag.
        numbers: names of tools whose first argument is a number.
    """

    tools: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    numbers: frozenset[str] = frozenset()
    is_native: bool = False

    @classmethod
    def from_tools(cls, tools: Mapping[str, Tool], tags: Mapping[str, str] | None = None) -> TagToolParser:
        """Create a parser for these tools; `tags` maps tags to tool names, by default each name is its own tag.

        Raises:
            ValueError: a tag has no tool, or a tool has no arguments.
        """
        tag_tools, numbers = {}, set()
        for tag, name in (tags or {name: name for name in tools}).items():
            if name not in tools:
                raise ValueError(f"tag {tag!r}: no tool {name!r}; the tools are {', '.join(tools)}")
            parameters = list(inspect.signature(tools[name]).parameters)
            hints = get_type_hints(tools[name])
            if not parameters:
                raise ValueError(f"tag {tag!r}: tool {name!r} has no argument for the text of the tag")
            tag_tools[tag] = (name, parameters[0], (inspect.getdoc(tools[name]) or "").split("\n", 1)[0])
            if hints.get(parameters[0]) in (int, float):
                numbers.add(name)
        return cls(tag_tools, frozenset(numbers))

    def prompt(self, messages: list[Message], schemas: Sequence[JsonSchema]) -> list[Message]:
        return with_system_text(messages, _render("tags.jinja", tools=self.tools))

    def calls(self, text: str) -> list[ToolCall]:
        matches = self._pattern.findall(strip_thinking(text)) if self.tools else []
        return [self._call(tag, content.strip()) for tag, content in matches]

    def without_calls(self, text: str) -> str:
        return self._pattern.sub("", text).strip()

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"<({'|'.join(map(re.escape, self.tools))})>(.*?)</\1>", re.DOTALL)

    @property
    def example(self) -> str:
        tag = next(iter(self.tools), "TAG")
        return f"<{tag}>TEXT</{tag}>"

    def turn(self, results: Sequence[ToolResult]) -> tuple[Message, str]:
        return {"role": "assistant", "content": blocks_of(PLACEHOLDER_TURN)}, PLACEHOLDER_TURN

    def _call(self, tag: str, text: str) -> ToolCall:
        name, argument, _ = self.tools[tag]
        value = extract_json(text) if name in self.numbers else None
        return ToolCall(name, {argument: value if isinstance(value, int | float) else text})

    def answer(self, results: Sequence[ToolResult]) -> list[Message]:
        return [{"role": "user", "content": _wrap_results(results, "result")}]


def find_tool_parser(
    name: str, template: str | None, tools: Mapping[str, Tool], tags: Mapping[str, str] | None = None
) -> ToolParser:
    """Return the tool parser of a name in TOOL_FORMATS; `auto` is `native` where the template's calls can be parsed.

    Raises:
        ValueError: an unknown name, or `native` for a template that writes no calls, or in an unknown format.
    """
    if name not in TOOL_FORMATS:
        raise ValueError(f"--tool_format must be one of {', '.join(TOOL_FORMATS)}, got {name!r}")
    if name == "tags":
        return TagToolParser.from_tools(tools, tags)
    form = find_tool_call_format(template)
    if name == "hermes" or (name == "auto" and form is None):
        return HermesToolParser()
    if template is None or "tools" not in template:
        raise ValueError("--tool_format native: this model's chat template does not support tools; use hermes or tags")
    if form is None:
        raise ValueError(
            "--tool_format native: this model's chat template must write calls in one of the formats "
            f"{', '.join(TOOL_CALL_FORMATS)}, got another one; use hermes or tags"
        )
    return NativeToolParser(form, offered_tools([tool_schema(*item) for item in tools.items()]))


def with_system_text(messages: list[Message], text: str) -> list[Message]:
    """Return the messages with text appended to the system turn, or with a new system turn."""
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    content = messages[0]["content"]
    longer = f"{content}\n\n{text}" if isinstance(content, str) else [*content, *blocks_of(f"\n\n{text}")]
    return [{**messages[0], "content": longer}, *messages[1:]]


def make_tool_call_str(name: str, arguments: Mapping[str, object]) -> str:
    """Return a tool call as text, which `parse_tool_call_str` parses."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': dict(arguments)})}\n</tool_call>"


def parse_tool_call_str(text: str) -> tuple[str, JsonObject] | None:
    """Return name and arguments of the only call in a text; None unless there is exactly one valid call."""
    calls = TOOL_CALL_FORMATS["hermes"].calls(text)
    if len(calls) != 1 or calls[0].name is None or not isinstance(calls[0].arguments, dict):
        return None
    return calls[0].name, calls[0].arguments


def _wrap_results(results: Sequence[ToolResult], tag: str) -> list[Block]:
    """Return the results as blocks, each between tags; adjacent text is merged."""
    blocks: list[Block] = []
    for number, result in enumerate(results):
        begin = f"{'' if number == 0 else chr(10)}<{tag}>\n"
        blocks += [*blocks_of(begin), *blocks_of(result.content), *blocks_of(f"\n</{tag}>")]
    return merge_text_blocks(blocks)


def _render(name: str, **values: object) -> str:
    return _template(name).render(**values).strip()


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    source = files("vlm_grpo.envs").joinpath(name).read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)
