from __future__ import annotations

import json
from typing import Any

import pytest

from vlm_grpo.rewards import make_reward, score
from vlm_grpo.rewards.tool_call import matches_schema

ZOOM = {
    "type": "function",
    "function": {
        "name": "zoom",
        "parameters": {
            "type": "object",
            "properties": {
                "box": {"type": "array", "items": {"type": "number"}},
                "factor": {"type": "integer", "minimum": 1, "maximum": 8},
                "mode": {"enum": ["near", "far"]},
            },
            "required": ["box"],
        },
    },
}


def call(name: str = "zoom", **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def value(text: str, **columns: Any) -> float | None:
    return score("tool_call", f"{text}<answer>7</answer>", **{"answer": "7", "tools": [ZOOM], **columns})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (call(box=[1, 2, 3, 4]), 1.0),
        (call(box=[1, 2.5], factor=8, mode="far"), 1.0),
        (call(box=[1]) * 10, 1.0),  # ten calls are worth no more than one
        (call(box=[1]) + call(), 0.5),
        ("", 0.0),
        (call(), 0.0),  # required
        (call(box="1, 2"), 0.0),
        (call(box=["1"]), 0.0),
        (call(box=[True]), 0.0),
        (call(box=[1], factor=9), 0.0),
        (call(box=[1], factor=1.5), 0.0),
        (call(box=[1], mode="up"), 0.0),
        (call(box=[1], other=1), 0.0),
        (call("zoom_in", box=[1]), 0.0),  # not offered
        ('<tool_call>{"name": "zoom", "arguments": [1]}</tool_call>', 0.0),
        ('<tool_call>{"name": "zoom"}</tool_call>', 0.0),
        ("<tool_call>{'name': 'zoom', 'arguments': {'box': [1]}}</tool_call>", 0.0),  # a Python repr is no JSON
        ("<tool_call>", 0.0),
        ("<tool_call></tool_call>", 0.0),
        (f"<think>{call(box=[1])}</think>", 0.0),  # only thought of
        ("zoom([1, 2, 3, 4])", 0.0),
    ],
)
def test_tool_call(text: str, expected: float):
    assert value(text) == expected


def test_a_call_is_worth_nothing_when_the_answer_is_wrong_unless_asked_for():
    right, wrong = call(box=[1]) + "<answer>7</answer>", call(box=[1]) + "<answer>8</answer>"
    columns = {"answer": ["7", "7"], "tools": [[ZOOM]] * 2}
    assert make_reward("tool_call")([right, wrong], **columns) == [1.0, 0.0]
    assert make_reward("tool_call", even_if_wrong=True)([right, wrong], **columns) == [1.0, 1.0]
    assert value(call(box=[1]), answer=None) is None  # nobody knows
    assert score("accuracy", right, answer="7") == score("accuracy", "<answer>7</answer>", answer="7")


def test_tools_that_are_offered():
    assert value(call(box=[1]), tools=None) is None
    assert value(call(box=[1]), tools=[]) is None
    assert value(call(box=[1]), tools="not JSON") is None
    assert value(call(box=[1]), tools=json.dumps([ZOOM])) == 1.0
    assert value(call(box=[1]), tools=[ZOOM["function"]]) == 1.0
    assert value(call(anything=3), tools=["zoom"]) == 1.0  # a name without a schema


def test_calls_in_messages():
    def said(**function: Any) -> list[dict[str, Any]]:
        return [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "name": "zoom", "content": call(box="no call of the model")},
            {"role": "assistant", "content": [{"type": "text", "text": "<answer>7</answer>"}]},
        ]

    columns = {"answer": ["7"], "tools": [[ZOOM]]}
    for arguments, expected in (({"box": [1]}, 1.0), ('{"box": [1]}', 1.0), ({}, 0.0), ("{", 0.0), (None, 0.0)):
        messages = said(name="zoom", arguments=arguments)
        assert make_reward("tool_call")([messages], **columns) == [expected]
        assert score("tool_call", messages, answer="7", tools=[ZOOM]) == expected
    written = [{"role": "assistant", "content": call(box=[1])}, {"role": "assistant", "content": "<answer>7</answer>"}]
    assert make_reward("tool_call")([written], **columns) == [1.0]


@pytest.mark.parametrize(
    ("given", "schema", "expected"),
    [
        (3.0, {"type": "integer"}, True),
        (True, {"type": "integer"}, False),
        (True, {"type": ["null", "boolean"]}, True),
        (None, {"type": ["null", "string"]}, True),
        ("x", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, True),
        ([], {"anyOf": [{"type": "integer"}, {"type": "string"}]}, False),
        ({"a": {"b": 1}}, {"properties": {"a": {"properties": {"b": {"type": "string"}}}}}, False),
        ({"a": 1, "b": None}, {"properties": {"a": None, "b": None}, "required": None, "enum": None}, True),  # Arrow's
        (1, {"type": "unheard of"}, False),  # no schema: nothing can be said to fit it
    ],
)
def test_fits(given: Any, schema: dict[str, Any], expected: bool):
    assert matches_schema(given, schema) is expected
