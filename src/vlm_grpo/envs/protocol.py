"""How a model is told of its tools, how its calls are read, and how their results are handed back to it.

A protocol works on messages and text alone; tokens are the business of `rollouts/observations.py`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, Protocol, get_type_hints

from vlm_grpo.envs.environment import Content, blocks_of, join_text, schema_of
from vlm_grpo.rewards.tool import offered_tools
from vlm_grpo.text import extract_json, without_thinking
from vlm_grpo.tool_forms import TOOL_FORMS, Call, Schemas, ToolForm, find_form

PROTOCOLS = ("auto", "native", "hermes", "tags")
SAID = "(a turn of the assistant)"  # stands for what was generated while the text around results is rendered


class Result(NamedTuple):
    """What came of a call: content for the model, and whether the call failed."""

    name: str
    content: Content
    is_failure: bool = False


class ToolProtocol(Protocol):
    """What the rollout needs to know.

    Attributes:
        is_native: whether the chat template is given the schemas itself.
        example: a call as the model should write it.
    """

    is_native: bool
    example: str

    def prompt(self, messages: list[dict[str, Any]], schemas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with what the model must know of its tools."""

    def calls(self, text: str) -> list[Call]:
        """The calls of one turn of the assistant, in order; `UNREADABLE` for one that cannot be read."""

    def without_calls(self, text: str) -> str:
        """The text of a turn of the assistant without its calls."""

    def turn(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        """A turn of the assistant with the calls that gave these results, and the text that it ends with.

        It stands for the turn that was generated while a chat template renders what comes after it; SAID is in it.
        """

    def answer(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        """The messages that hand results to the model."""


@dataclass(frozen=True)
class Native:
    """For chat templates that know tools, in the form in which they write calls: they get schemas and `tool` messages.

    Args:
        form: how calls are written.
        schemas: of the arguments of each tool.
    """

    form: ToolForm = TOOL_FORMS["hermes"]
    schemas: Schemas = field(default_factory=dict)
    is_native: bool = True

    @property
    def example(self) -> str:
        return self.form.example

    def prompt(self, messages: list[dict[str, Any]], schemas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return messages

    def calls(self, text: str) -> list[Call]:
        return self.form.calls(text, self.schemas)

    def without_calls(self, text: str) -> str:
        return self.form.block.sub("", text).strip()

    def turn(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        functions = [{"name": result.name, "arguments": {"said": SAID}} for result in results]
        calls = [{"type": "function", "id": call_id(n), "function": each} for n, each in enumerate(functions)]
        return {"role": "assistant", "content": "", "tool_calls": calls}, self.form.end

    def answer(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        return [
            {"role": "tool", "name": result.name, "tool_call_id": call_id(n), "content": blocks_of(result.content)}
            for n, result in enumerate(results)
        ]


def call_id(number: int) -> str:
    """Nine letters and digits, as Mistral's template wants them."""
    return f"call{number:05d}"


@dataclass(frozen=True)
class Hermes:
    """For every other template (Qwen2-VL, Qwen2.5-VL, ...): tools in the system turn, results in a user turn.

    The markup is that of Hermes function calling, which the language models below Qwen's were trained on:
    `<tools>`, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, `<tool_response>`.
    """

    is_native: bool = False
    example: str = TOOL_FORMS["hermes"].example

    def prompt(self, messages: list[dict[str, Any]], schemas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return with_system_text(messages, _render("hermes.jinja", tools=[json.dumps(schema) for schema in schemas]))

    def calls(self, text: str) -> list[Call]:
        return TOOL_FORMS["hermes"].calls(text)

    def without_calls(self, text: str) -> str:
        return TOOL_FORMS["hermes"].block.sub("", text).strip()

    def turn(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        return {"role": "assistant", "content": blocks_of(SAID)}, SAID

    def answer(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": _enclosed(results, "tool_response")}]


@dataclass(frozen=True)
class Tags:
    """One tag for each tool, `<search>what to look for</search>`; the text is the tool's first argument.

    Args:
        tools: of the tool behind each tag, its name, its first argument and its description.
        numbers: names of tools whose first argument is a number.
    """

    tools: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    numbers: frozenset[str] = frozenset()
    is_native: bool = False

    @classmethod
    def of(cls, tools: Mapping[str, Callable[..., Any]], tags: Mapping[str, str] | None = None) -> Tags:
        """The protocol of some tools; `tags` maps a tag to the name of its tool, else each tool's name is its tag.

        Raises:
            ValueError: a tag names no tool, or a tool takes no argument.
        """
        known, numbers = {}, set()
        for tag, name in (tags or {name: name for name in tools}).items():
            if name not in tools:
                raise ValueError(f"tag {tag!r}: no tool {name!r}; the tools are {', '.join(tools)}")
            parameters = list(inspect.signature(tools[name]).parameters)
            hints = get_type_hints(tools[name])
            if not parameters:
                raise ValueError(f"tag {tag!r}: tool {name!r} takes no argument that the text of the tag could be")
            known[tag] = (name, parameters[0], (inspect.getdoc(tools[name]) or "").split("\n", 1)[0])
            if hints.get(parameters[0]) in (int, float):
                numbers.add(name)
        return cls(known, frozenset(numbers))

    def prompt(self, messages: list[dict[str, Any]], schemas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return with_system_text(messages, _render("tags.jinja", tools=self.tools))

    def calls(self, text: str) -> list[Call]:
        found = self._pattern.findall(without_thinking(text)) if self.tools else []
        return [self._call(tag, content.strip()) for tag, content in found]

    def without_calls(self, text: str) -> str:
        return self._pattern.sub("", text).strip()

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"<({'|'.join(map(re.escape, self.tools))})>(.*?)</\1>", re.DOTALL)

    @property
    def example(self) -> str:
        tag = next(iter(self.tools), "TAG")
        return f"<{tag}>TEXT</{tag}>"

    def turn(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        return {"role": "assistant", "content": blocks_of(SAID)}, SAID

    def _call(self, tag: str, text: str) -> Call:
        name, argument, _ = self.tools[tag]
        value = extract_json(text) if name in self.numbers else None
        return Call(name, {argument: value if isinstance(value, int | float) else text})

    def answer(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": _enclosed(results, "result")}]


def find_protocol(
    name: str, template: str | None, tools: Mapping[str, Callable[..., Any]], tags: Mapping[str, str] | None = None
) -> ToolProtocol:
    """The protocol of a name of PROTOCOLS; `auto` is the model's own where its template writes calls in a known form.

    Raises:
        ValueError: an unknown name, or `native` for a template that writes no calls, or in a form that is not known.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"--tool_protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    if name == "tags":
        return Tags.of(tools, tags)
    form = find_form(template)
    if name == "hermes" or (name == "auto" and form is None):
        return Hermes()
    if template is None or "tools" not in template:
        raise ValueError("--tool_protocol native: this model's chat template knows no tools; use hermes or tags")
    if form is None:
        raise ValueError(
            "--tool_protocol native: this model's chat template must write calls in one of the forms "
            f"{', '.join(TOOL_FORMS)}, got another one; use hermes or tags"
        )
    return Native(form, offered_tools([schema_of(*item) for item in tools.items()]))


def with_system_text(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The messages with text at the end of their system turn, or with a system turn of it."""
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    content = messages[0]["content"]
    longer = f"{content}\n\n{text}" if isinstance(content, str) else [*content, *blocks_of(f"\n\n{text}")]
    return [{**messages[0], "content": longer}, *messages[1:]]


def make_tool_call_str(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as a model writes it; `parse_tool_call_str` reads it back."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': dict(arguments)})}\n</tool_call>"


def parse_tool_call_str(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the only call in a text; None where there is none, several, or one that cannot be read."""
    found = TOOL_FORMS["hermes"].calls(text)
    if len(found) != 1 or found[0].name is None or not isinstance(found[0].arguments, dict):
        return None
    return found[0].name, found[0].arguments


def _enclosed(results: Sequence[Result], tag: str) -> list[dict[str, Any]]:
    """The results as blocks, each between tags; neighbouring text is one block."""
    blocks: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        begin = f"{'' if number == 0 else chr(10)}<{tag}>\n"
        blocks += [*blocks_of(begin), *blocks_of(result.content), *blocks_of(f"\n</{tag}>")]
    return join_text(blocks)


def _render(name: str, **values: Any) -> str:
    return _template(name).render(**values).strip()


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    source = files("vlm_grpo.envs").joinpath(name).read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)
