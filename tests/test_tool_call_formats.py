"""Calls in the form of each family: as the makers' templates write them, and what cannot be read."""

from __future__ import annotations

import pytest
from trl.chat_template_utils import add_response_schema, parse_response

from tests.support.templates import MISTRAL, published, tokenizer_with, written_calls
from vlm_grpo.rewards import score
from vlm_grpo.tiny import END
from vlm_grpo.tool_call_formats import (
    TOOL_CALL_FORMATS,
    UNREADABLE_CALL,
    ToolCall,
    find_tool_call_format,
    parse_tool_calls,
)

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "is_open": {"type": "boolean"},
        "box": {"type": "array", "items": {"type": "integer"}},
        "options": {"type": "object"},
    },
}
SCHEMAS = {"look": PARAMETERS, "ping": {"type": "object", "properties": {}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
ARGUMENTS = {
    "text": "75001",
    "count": 7,
    "ratio": -0.5,
    "is_open": True,
    "box": [1, 20, 300, 4],
    "options": {"deep": [1, {"er": "x, y) ]"}]},
}
CALLS = [ToolCall("look", ARGUMENTS), ToolCall("ping", {}), ToolCall("look", {"text": "it's\ntwo lines"})]
TEMPLATES = {
    "qwen3_vl": "hermes",
    "qwen3_5_think": "qwen_xml",
    "qwen3_6": "qwen_xml",
    "qwen3_8": "qwen_xml",
    "gemma4": "gemma",
    "gemma4_v2": "gemma",
    "gemma4_v3": "gemma",
    "gemma4_v4": "gemma",
    "gemma4_v5": "gemma",
    "lfm2_2_5_vl": "python",
    "glm4moe": "glm",
    "mistral": "mistral",
}


def template_of(name: str) -> str:
    return MISTRAL if name == "mistral" else published(name)


def written(name: str, calls: list[ToolCall]) -> str:
    return written_calls(template_of(name), calls, TOOLS).removesuffix(END)


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_read_as_the_template_writes_them(name: str):
    form = find_tool_call_format(template_of(name))
    assert form is TOOL_CALL_FORMATS[TEMPLATES[name]]
    text = written(name, CALLS)
    assert form.calls(text, SCHEMAS) == CALLS
    assert parse_tool_calls(text, SCHEMAS) == CALLS


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5_think", "gemma4", "glm4moe", "lfm2_2_5_vl"])
def test_calls_are_those_that_trl_reads(name: str):
    """TRL's response templates are the second opinion; where theirs loses something, `lossy` says what."""
    lossy = {"lfm2_2_5_vl": {"is_open"}}.get(name, set())
    calls = [ToolCall("look", {key: value for key, value in ARGUMENTS.items() if key not in {*lossy, "options"}})]
    tokenizer = add_response_schema(tokenizer_with(template_of(name)))
    text = written(name, calls)
    start = {"glm4moe": "<|assistant|>", "gemma4": "<|turn>model\n"}.get(name, "<|im_start|>assistant\n")
    turn = text.split(start)[-1]
    ids, prefix = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (turn, start))
    found = parse_response(tokenizer, ids, prefix=prefix, tools=TOOLS)["tool_calls"]
    read = find_tool_call_format(template_of(name)).calls(turn, SCHEMAS)
    assert [ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in found] == read == calls


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "smolvlm", "idefics3", "llava_next"])
def test_templates_without_tools_have_no_form(name: str):
    assert find_tool_call_format(published(name)) is None


def test_a_form_that_is_not_in_the_table_is_none():
    assert find_tool_call_format("{{ tools }} <unknown_call>") is None and find_tool_call_format(None) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_inside_a_thought_does_not_count(name: str):
    form, text = find_tool_call_format(template_of(name)), written(name, CALLS[1:2])
    call = text[text.index(form.example[:6]) :]
    assert form.calls(call, SCHEMAS) == CALLS[1:2]
    assert form.calls(f"<think>I might write {call}</think>nothing", SCHEMAS) == []
    assert form.calls(f"<think>I might write {call}", SCHEMAS) == []


@pytest.mark.parametrize("form", TOOL_CALL_FORMATS)
def test_the_example_of_a_form_is_read(form: str):
    value = {"KEY": "VALUE"} if form in ("glm", "qwen_xml") else {"KEY": "TEXT"}
    assert TOOL_CALL_FORMATS[form].calls(TOOL_CALL_FORMATS[form].example) == [ToolCall("NAME", value)]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("hermes", "<tool_call><function=f></function></tool_call>"),
        ("qwen_xml", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
        ("qwen_xml", "<tool_call><function=f>lost</function></tool_call>"),
        ("qwen_xml", "<tool_call><function=f><parameter=a>1</parameter>"),
        (
            "qwen_xml",
            "<tool_call><function=f><parameter=a>1</parameter><parameter=a>2</parameter></function></tool_call>",
        ),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key></tool_call>"),
        ("gemma", '<|tool_call>call:f{a:<|"|>b}<tool_call|>'),
        ("gemma", "<|tool_call>call:f{a:1,a:2}<tool_call|>"),
        ("gemma", "<|tool_call>call:f{a:1e999}<tool_call|>"),
        ("gemma", "<|tool_call>call:f{a:" + "[" * 5000 + "<tool_call|>"),
        ("python", "<|tool_call_start|>[f(1)]<|tool_call_end|>"),
        ("python", "<|tool_call_start|>[f(a=g())]<|tool_call_end|>"),
        ("python", "<|tool_call_start|>[f(**{'a': 1})]<|tool_call_end|>"),
        ("python", "<|tool_call_start|>[f(a=1e999)]<|tool_call_end|>"),
        ("python", "<|tool_call_start|>[f(a=1j)]<|tool_call_end|>"),
        ("python", "<|tool_call_start|>[f(a={'b': 1, 'b': 2})]<|tool_call_end|>"),
        ("python", "<|tool_call_start|>[f(a=" + "(" * 5000 + "<|tool_call_end|>"),
        ("python", "<|tool_call_start|>__import__('os')<|tool_call_end|>"),
        ("mistral", "[TOOL_CALLS]f[ARGS]{"),
        ("mistral", "[TOOL_CALLS][]"),
    ],
)
def test_what_cannot_be_read_says_so(form: str, text: str):
    assert TOOL_CALL_FORMATS[form].calls(text) == [UNREADABLE_CALL]


def test_newer_mistral_models_name_the_tool_first():
    form = TOOL_CALL_FORMATS["mistral"]
    assert form.calls('[TOOL_CALLS]look[ARGS]{"text": "a"}[TOOL_CALLS]ping[CALL_ID]abc123XYZ[ARGS]{}') == [
        ToolCall("look", {"text": "a"}),
        ToolCall("ping", {}),
    ]


def test_values_without_quotes_are_typed_by_the_schema():
    form = TOOL_CALL_FORMATS["qwen_xml"]
    pairs = "".join(f"<parameter={key}>\n7\n</parameter>" for key in ("text", "count"))
    text = f"<tool_call><function=look>{pairs}</function></tool_call>"
    assert form.calls(text, SCHEMAS) == [ToolCall("look", {"text": "7", "count": 7})]
    assert form.calls(text) == [ToolCall("look", {"text": 7, "count": 7})]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5_think", "gemma4_v5", "lfm2_2_5_vl", "glm4moe"])
def test_the_reward_for_calls_knows_every_form(name: str):
    text = written(name, [ToolCall("look", {"text": "here", "count": 2})])
    completion = f"<answer>3</answer>{text[text.index(find_tool_call_format(template_of(name)).example[:6]) :]}"
    assert score("tool_call", completion, answer="3", tools=TOOLS) == 1.0
    assert score("tool_call", completion.replace("look", "cook"), answer="3", tools=TOOLS) == 0.0
