"""Reward for well-formed tool calls: calls of an offered tool whose arguments match its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from vlm_grpo.answer_parser import extract_json
from vlm_grpo.records import Completion, JsonSchema, Record
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.judge_client import JudgeSettings
from vlm_grpo.tool_call_formats import UNREADABLE_CALL, Schemas, ToolCall, parse_tool_calls

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


def tool_call_reward(
    completion: str,
    record: Record,
    *,
    messages: Completion = None,
    even_if_wrong: bool = False,
    tolerance: float | None = None,
    judge: JudgeSettings | None = None,
) -> float | None:
    """Return the fraction of well-formed tool calls; 0 without a call or with a wrong final answer.

    Calls are parsed from the text outside the thinking in one of TOOL_CALL_FORMATS (JSON in `<tool_call>`, or the
    formats of Qwen3.5, Gemma, GLM, LFM2 and Mistral) and from the messages' `tool_calls`. A call is well-formed if the
    record's `tools` (JSON schemas of functions, or names) contain the tool and its schema accepts the arguments. None
    if the record has no tools, or if the correctness of the answer cannot be determined.

    Args:
        messages: The whole completion if it has several turns; set by the adapter.
        even_if_wrong: Reward calls regardless of the final answer. A policy then learns calls for their own sake.
        tolerance, judge: As for `accuracy`, which determines whether the final answer is correct.
    """
    offered = offered_tools(record.extra.get("tools"))
    if not offered:
        return None
    accuracy = 1.0 if even_if_wrong else accuracy_reward(completion, record, tolerance=tolerance, judge=judge)
    if accuracy is None:
        return None
    calls = extract_tool_calls(completion if isinstance(messages, str) or not messages else messages, offered)
    if accuracy <= 0.5 or not calls:
        return 0.0
    return sum(
        call.name in offered and are_valid_arguments(call.arguments, offered[call.name]) for call in calls
    ) / len(calls)


def extract_tool_calls(completion: Completion, schemas: Schemas | None = None) -> list[ToolCall]:
    """Return the tool calls of a text, or of the assistant's turns in a list of messages.

    Args:
        schemas: JSON schema of each tool's arguments, for formats that do not distinguish numbers from strings.
    """
    if isinstance(completion, str):
        return parse_tool_calls(completion, schemas)
    calls: list[ToolCall] = []
    for message in completion or []:
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"text": content}]
        for block in blocks:
            text = block.get("text") if isinstance(block, Mapping) else None
            calls += parse_tool_calls(text, schemas) if isinstance(text, str) else []
        calls += [_from_openai(call) for call in message.get("tool_calls") or []]
    return calls


def _from_openai(call: object) -> ToolCall:
    """Convert a call in the format of TRL and OpenAI, whose arguments are an object or JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return UNREADABLE_CALL
    arguments = function.get("arguments")
    return ToolCall(function["name"], extract_json(arguments) if isinstance(arguments, str) else arguments)


def offered_tools(tools: object) -> dict[str, JsonSchema | None]:
    """Return the JSON schema of each offered tool's arguments by name; None if only the name is known."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return {}
    offered: dict[str, JsonSchema | None] = {}
    for tool in tools if isinstance(tools, Sequence) and not isinstance(tools, str) else []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {"name": tool}
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            offered[function["name"]] = schema if isinstance(schema, Mapping) else None
    return offered


def are_valid_arguments(arguments: object, schema: JsonSchema | None) -> bool:
    """Return whether arguments are an object that the schema accepts; unknown arguments are rejected."""
    if not isinstance(arguments, Mapping):
        return False
    if schema is None:
        return True
    present = {name: part for name, part in schema.items() if part is not None}
    return matches_schema(dict(arguments), {"type": "object", "additionalProperties": False, **present})


def matches_schema(value: object, schema: JsonSchema) -> bool:
    """Return whether a value is valid under a JSON schema (draft 2020-12); False for an invalid schema."""
    try:
        return _validator(json.dumps(_drop_none(schema), sort_keys=True)).is_valid(value)
    except (ValueError, TypeError, RecursionError):
        return False


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Validator:
    """Return the validator of a schema in JSON text."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(json.loads(schema))
    except SchemaError as error:
        raise ValueError(f"invalid JSON schema: {error.message}") from error
    return Draft202012Validator(json.loads(schema))


def _drop_none(schema: object) -> object:
    """Return the schema without keys that are None (Arrow adds them)."""
    if isinstance(schema, Mapping):
        return {name: _drop_none(part) for name, part in schema.items() if part is not None}
    return [_drop_none(part) for part in schema] if isinstance(schema, list) else schema
