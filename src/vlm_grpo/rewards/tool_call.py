"""Reward for well-formed tool calls: tools that were offered, with arguments that their schema allows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from vlm_grpo.answer_parser import extract_json
from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.judge_client import JudgeSettings
from vlm_grpo.tool_call_formats import UNREADABLE, Call, Schemas, calls_in_text


def tool_call_reward(
    completion: str,
    record: Record,
    *,
    messages: Any = None,
    even_if_wrong: bool = False,
    tolerance: float | None = None,
    judge: JudgeSettings | None = None,
) -> float | None:
    """Share of the tool calls that are well-formed, 0 where the final answer is not right; 0 without a call.

    A call is written outside the thinking in one of TOOL_FORMS (JSON in `<tool_call>`, or as Qwen3.5, Gemma, GLM, LFM2
    and Mistral do), or is one of the messages' `tool_calls`. It is well-formed when the
    record's `tools` (JSON schemas of functions, or names) offer that tool and allow its arguments. None when the record
    offers no tools, or when it cannot be known whether the answer is right.

    Args:
        messages: The whole completion where it has several turns; the adapter gives it.
        even_if_wrong: Pay for calls whatever the final answer is. A policy then learns to call for the call's sake.
        tolerance, judge: as for `accuracy`, which decides whether the final answer is right.
    """
    offered = offered_tools(record.extra.get("tools"))
    if not offered:
        return None
    right = 1.0 if even_if_wrong else accuracy_reward(completion, record, tolerance=tolerance, judge=judge)
    if right is None:
        return None
    calls = calls_in(completion if isinstance(messages, str) or not messages else messages, offered)
    if right <= 0.5 or not calls:
        return 0.0
    return sum(call.name in offered and is_allowed(call.arguments, offered[call.name]) for call in calls) / len(calls)


def calls_in(completion: Any, schemas: Schemas | None = None) -> list[Call]:
    """Return the tool calls of a text, or of the assistant's turns in a list of messages.

    Args:
        schemas: of the arguments of each tool, for forms that write numbers and strings alike.
    """
    if isinstance(completion, str):
        return calls_in_text(completion, schemas)
    calls = []
    for message in completion:
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"text": content}]
        for block in blocks:
            text = block.get("text") if isinstance(block, Mapping) else None
            calls += calls_in_text(text, schemas) if isinstance(text, str) else []
        calls += [_from_function(call) for call in message.get("tool_calls") or []]
    return calls


def _from_function(call: Any) -> Call:
    """A call in the form of TRL and OpenAI, arguments as an object or as its JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return UNREADABLE
    arguments = function.get("arguments")
    return Call(function["name"], extract_json(arguments) if isinstance(arguments, str) else arguments)


def offered_tools(tools: Any) -> dict[str, Mapping[str, Any] | None]:
    """Name and JSON schema of the arguments of every offered tool (None where only a name is known)."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return {}
    offered: dict[str, Mapping[str, Any] | None] = {}
    for tool in tools if isinstance(tools, Sequence) and not isinstance(tools, str) else []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {"name": tool}
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            offered[function["name"]] = schema if isinstance(schema, Mapping) else None
    return offered


def is_allowed(arguments: Any, schema: Mapping[str, Any] | None) -> bool:
    """Whether arguments are an object that the schema allows; an argument that it does not name is refused."""
    if not isinstance(arguments, Mapping):
        return False
    return schema is None or fits(dict(arguments), {"type": "object", "additionalProperties": False, **_known(schema)})


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is valid under a JSON schema (draft 2020-12); nothing is under a schema that is none itself."""
    try:
        return _validator(json.dumps(_known(schema), sort_keys=True)).is_valid(value)
    except (ValueError, TypeError, RecursionError):
        return False


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """Raises: ValueError: the schema is none."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(json.loads(schema))
    except SchemaError as error:
        raise ValueError(f"no JSON schema: {error.message}") from error
    return Draft202012Validator(json.loads(schema))


def _known(schema: Any) -> Any:
    """The schema without the keys that Arrow filled up with None."""
    if isinstance(schema, Mapping):
        return {name: _known(part) for name, part in schema.items() if part is not None}
    return [_known(part) for part in schema] if isinstance(schema, list) else schema
