"""The formats in which model families write tool calls: recognize a chat template, parse a call.

The prompt side (descriptions of tools, and results) is handled by the chat template. Imports no torch.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from vlm_grpo.answer_parser import extract_json, strip_thinking
from vlm_grpo.records import JsonSchema
from vlm_grpo.registry import Registry

Item = TypeVar("Item")

QUOTE = '<|"|>'  # around strings in Gemma's calls
Schemas = Mapping[str, JsonSchema | None]  # JSON schemas of the arguments, by the name of the tool


class ToolCall(NamedTuple):
    """A tool's name and arguments; `name` is None if the call cannot be parsed."""

    name: str | None
    arguments: object


UNREADABLE_CALL = ToolCall(None, None)


@dataclass(frozen=True)
class ToolCallFormat:
    """A format of tool calls.

    Attributes:
        mark: text that identifies a chat template with this format.
        block: pattern of a block of calls, possibly truncated; its first group is the content.
        read: parses the calls in the content of a block; `UNREADABLE_CALL` if one cannot be parsed.
        example: a well-formed call, shown to the model after one that cannot be parsed.
        end: text after the arguments of a turn's last call.
    """

    mark: str
    block: re.Pattern[str]
    read: Callable[[str, Schemas], list[ToolCall]]
    example: str
    end: str

    def calls(self, text: str, schemas: Schemas | None = None) -> list[ToolCall]:
        """Return the calls of a turn outside thinking blocks, in order.

        Args:
            schemas: distinguish numbers from strings, in formats that do not.
        """
        insides = self.block.findall(strip_thinking(text))
        return [call for inside in insides for call in self.read(inside, schemas or {})]


def read_hermes(inside: str, schemas: Schemas) -> list[ToolCall]:
    """Parse `{"name": ..., "arguments": {...}}`, or Fleet's `{"tool_name": ..., "arguments": {"i": ...}}`."""
    value = extract_json(inside)
    if isinstance(value, dict) and set(value) == {"tool_name", "arguments"}:
        arguments = value["arguments"]
        is_index = isinstance(arguments, dict) and set(arguments) == {"i"}
        value = {"name": value["tool_name"], "arguments": {"index": arguments["i"]} if is_index else arguments}
    return [_from_json(value)]


def _from_json(value: object) -> ToolCall:
    if isinstance(value, dict) and set(value) == {"name", "arguments"} and isinstance(value["name"], str):
        return ToolCall(value["name"], value["arguments"])
    return UNREADABLE_CALL


FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)


def read_qwen_xml(inside: str, schemas: Schemas) -> list[ToolCall]:
    """Parse `<function=NAME>` with a `<parameter=KEY>` for each argument."""
    function = FUNCTION.fullmatch(inside)
    if function is None or PARAMETER.sub("", function[2]).strip():
        return [UNREADABLE_CALL]
    pairs = [(key, _without_line_ends(value)) for key, value in PARAMETER.findall(function[2])]
    return [_from_pairs(function[1].strip(), pairs, schemas)]


GLM_CALL = re.compile(r"\s*([^\s<]+)\s*((?:<arg_key>.*?</arg_key>\s*<arg_value>.*?</arg_value>\s*)*)", re.DOTALL)
GLM_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def read_glm(inside: str, schemas: Schemas) -> list[ToolCall]:
    """Parse `NAME` with an `<arg_key>` and an `<arg_value>` for each argument."""
    match = GLM_CALL.fullmatch(inside)
    return [UNREADABLE_CALL if match is None else _from_pairs(match[1], GLM_ARGUMENT.findall(match[2]), schemas)]


def _without_line_ends(value: str) -> str:
    return value.removeprefix("\n").removesuffix("\n")


def _from_pairs(name: str, pairs: list[tuple[str, str]], schemas: Schemas) -> ToolCall:
    """Return a call whose arguments are written without quotes; the schema determines which are strings."""
    if len({key for key, _ in pairs}) < len(pairs):
        return UNREADABLE_CALL
    properties = (schemas.get(name) or {}).get("properties") or {}
    return ToolCall(name, {key: _value(text, properties.get(key)) for key, text in pairs})


def _value(text: str, schema: object) -> object:
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    if kinds == "string":
        return text
    literals = {"True": True, "False": False, "None": None}
    if text.strip() in literals:
        return literals[text.strip()]
    value = extract_json(text)
    return text if value is None and text.strip() != "null" else value


GEMMA_CALL = re.compile(r"\s*call:([^\s{]+)(\{.*\})\s*", re.DOTALL)
GEMMA_PLAIN = re.compile(r"true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
GEMMA_KEY = re.compile(r"([^:{}\[\],<>\s]+):")


def read_gemma(inside: str, schemas: Schemas) -> list[ToolCall]:
    """Parse `call:NAME{key:value,...}`, with strings between `<|"|>`."""
    match = GEMMA_CALL.fullmatch(inside)
    try:
        return [UNREADABLE_CALL if match is None else ToolCall(match[1], _GemmaValue(match[2]).whole())]
    except (ValueError, RecursionError):
        return [UNREADABLE_CALL]


class _GemmaValue:
    """Parses one value in Gemma's notation, from a position on."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def whole(self) -> object:
        value = self.value()
        if self.place < len(self.text):
            raise ValueError(f"text after the value: {self.text[self.place :][:20]!r}")
        return value

    def value(self) -> object:
        if self._skips(QUOTE):
            return self._until_quote()
        if self._skips("{"):
            return _mapping(self._items("}", self._pair))
        if self._skips("["):
            return self._items("]", self.value)
        match = GEMMA_PLAIN.match(self.text, self.place)
        if match is None:
            raise ValueError(f"no value at {self.text[self.place :][:20]!r}")
        self.place = match.end()
        return _finite(json.loads(match[0]))

    def _pair(self) -> tuple[str, object]:
        if self._skips(QUOTE):
            key = self._until_quote()
            self._expects(":")
        else:
            match = GEMMA_KEY.match(self.text, self.place)
            if match is None:
                raise ValueError(f"no key at {self.text[self.place :][:20]!r}")
            key, self.place = match[1], match.end()
        return key, self.value()

    def _items(self, end: str, read: Callable[[], Item]) -> list[Item]:
        items: list[Item] = []
        while not self._skips(end):
            if items:
                self._expects(",")
            items.append(read())
        return items

    def _until_quote(self) -> str:
        end = self.text.index(QUOTE, self.place)
        text, self.place = self.text[self.place : end], end + len(QUOTE)
        return text

    def _skips(self, mark: str) -> bool:
        is_there = self.text.startswith(mark, self.place)
        self.place += len(mark) if is_there else 0
        return is_there

    def _expects(self, mark: str) -> None:
        if not self._skips(mark):
            raise ValueError(f"expected {mark!r} at {self.text[self.place :][:20]!r}")


JSON_WORDS = {"true": True, "false": False, "null": None}


def read_python(inside: str, schemas: Schemas) -> list[ToolCall]:
    """Parse `[NAME(key=value, ...), ...]` with Python or JSON literals as values, without executing code."""
    try:
        calls = ast.parse(inside.strip(), mode="eval").body
        return [_python_call(call) for call in calls.elts] if isinstance(calls, ast.List) else [UNREADABLE_CALL]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [UNREADABLE_CALL]


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        return UNREADABLE_CALL
    pairs = [(keyword.arg, _literal(keyword.value)) for keyword in node.keywords]
    return UNREADABLE_CALL if any(name is None for name, _ in pairs) else ToolCall(node.func.id, _mapping(pairs))


def _literal(node: ast.expr) -> object:
    """Return the value of a literal.

    Raises:
        ValueError: it is not a literal.
    """
    if isinstance(node, ast.Name) and node.id in JSON_WORDS:
        return JSON_WORDS[node.id]
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]  # None stands for `**other`
        if len(keys) == len(node.keys):
            pairs = zip(keys, node.values, strict=True)
            return _mapping([(_literal(key), _literal(value)) for key, value in pairs])
    return _finite(ast.literal_eval(node))


def _mapping(pairs: Sequence[tuple[object, object]]) -> dict[str, object]:
    """Return the pairs as a JSON object.

    Raises:
        ValueError: a key is repeated or not a string.
    """
    mapping = {key: value for key, value in pairs if isinstance(key, str)}
    if len(mapping) < len(pairs):
        raise ValueError("a key is repeated, or no string")
    return mapping


def _finite(value: object) -> str | float | None:
    """Return the value if JSON can represent it.

    Raises:
        ValueError: it is not finite, or of another type.
    """
    if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"no value of JSON: {value!r}")
    return value


MISTRAL_NAMED = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(\{.*\})\s*", re.DOTALL)


def read_mistral(inside: str, schemas: Schemas) -> list[ToolCall]:
    """Parse a JSON list of calls, or `NAME[ARGS]{...}` of newer models."""
    listed = extract_json(inside)
    if isinstance(listed, list):
        calls = [{k: v for k, v in item.items() if k != "id"} if isinstance(item, dict) else item for item in listed]
        return [_from_json(item) for item in calls] or [UNREADABLE_CALL]
    match = MISTRAL_NAMED.fullmatch(inside)
    if match is None:
        return [UNREADABLE_CALL]
    arguments = extract_json(match[2])
    return [ToolCall(match[1], arguments) if isinstance(arguments, dict) else UNREADABLE_CALL]


def _between(begin: str, end: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(begin)}(.*?)(?:{re.escape(end)}|\Z)", re.DOTALL)


TOOL_CALL = _between("<tool_call>", "</tool_call>")
# A template has the first format whose mark it contains.
TOOL_CALL_FORMATS: Registry[ToolCallFormat] = Registry(
    "form of tool calls",
    {
        "glm": ToolCallFormat(
            "<arg_key>",
            TOOL_CALL,
            read_glm,
            "<tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>",
            "</tool_call>",
        ),
        "qwen_xml": ToolCallFormat(
            "<function=",
            TOOL_CALL,
            read_qwen_xml,
            "<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>",
            "</tool_call>",
        ),
        "gemma": ToolCallFormat(
            "<|tool_call>call:",
            _between("<|tool_call>", "<tool_call|>"),
            read_gemma,
            '<|tool_call>call:NAME{KEY:<|"|>TEXT<|"|>}<tool_call|>',
            "<tool_call|>",
        ),
        "python": ToolCallFormat(
            "<|tool_call_start|>",
            _between("<|tool_call_start|>", "<|tool_call_end|>"),
            read_python,
            "<|tool_call_start|>[NAME(KEY='TEXT')]<|tool_call_end|>",
            "<|tool_call_end|>",
        ),
        "mistral": ToolCallFormat(
            "[TOOL_CALLS]",
            re.compile(r"\[TOOL_CALLS\](.*?)(?=\[TOOL_CALLS\]|\Z)", re.DOTALL),
            read_mistral,
            '[TOOL_CALLS][{"name": "NAME", "arguments": {"KEY": "TEXT"}}]',
            "]",
        ),
        "hermes": ToolCallFormat(
            "<tool_call>",
            TOOL_CALL,
            read_hermes,
            '<tool_call>\n{"name": "NAME", "arguments": {"KEY": "TEXT"}}\n</tool_call>',
            "</tool_call>",
        ),
    },
)


def find_tool_call_format(template: str | None) -> ToolCallFormat | None:
    """Return the format of calls in a chat template; None if it has no calls, or in an unknown format."""
    if template is None or "tools" not in template:
        return None
    return next((form for form in TOOL_CALL_FORMATS.values() if form.mark in template), None)


def parse_tool_calls(text: str, schemas: Schemas | None = None) -> list[ToolCall]:
    """Return the calls of a turn in any of the formats, in order."""
    text = strip_thinking(text)
    blocks = {form.block for form in TOOL_CALL_FORMATS.values()}
    matches = [(match, block) for block in blocks for match in block.finditer(text)]
    ordered = sorted(matches, key=lambda pair: pair[0].start())
    return [
        call for match, block in ordered for call in _format_of_match(match[1], block).read(match[1], schemas or {})
    ]


def _format_of_match(inside: str, block: re.Pattern[str]) -> ToolCallFormat:
    """Return the format of a match; three formats share the same delimiters."""
    if block is not TOOL_CALL:
        return next(form for form in TOOL_CALL_FORMATS.values() if form.block is block)
    if inside.lstrip().startswith("<function="):
        return TOOL_CALL_FORMATS["qwen_xml"]
    return TOOL_CALL_FORMATS["hermes" if inside.lstrip().startswith(("{", "[", "```")) else "glm"]
