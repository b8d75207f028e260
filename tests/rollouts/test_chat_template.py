"""What is found out about the chat templates that makers publish: the shape of messages, the opening of the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.templates import GLM4V, VISION, published, tokenizer_with
from vlm_grpo.rollouts.chat_template import ChatTemplate

THINKS, SILENT = "<think>\n", "<think>\n\n</think>\n\n"


# As GLM-5 marks turns: a thought is begun, or skipped by its end alone.
GLM5 = """{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|></think>{{ m.content }}{% else %}
{{- '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}{% if add_generation_prompt -%}
<|assistant|>{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"""


def said(role: str, *parts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": part} for part in parts]}


def template(name: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(tokenizer_with({"glm4v": GLM4V, "glm5": GLM5}.get(name) or published(name)), options)


@pytest.mark.parametrize(
    "name, options, opening",
    [
        ("qwen3_5_think", {}, THINKS),
        ("qwen3_5_think", {"enable_thinking": False}, SILENT),
        ("qwen3_5_nothink", {}, SILENT),
        ("qwen3_5_nothink", {"enable_thinking": True}, THINKS),
        ("qwen3_6", {}, THINKS),
        ("qwen3_6", {"enable_thinking": False}, SILENT),
        ("qwen3_8", {}, THINKS),
        ("qwen3_8", {"enable_thinking": False}, SILENT),
        ("qwen3", {"enable_thinking": False}, SILENT),
        ("glm4v", {}, "<think>"),
        ("glm5", {}, "<think>"),
        ("glm5", {"enable_thinking": False}, "</think>"),
        ("glm4moe", {}, ""),
        ("glm4moe", {"enable_thinking": False}, "<think></think>"),
        ("deepseek_r1_distill", {}, THINKS),
        *((name, {}, "") for name in VISION if not name.startswith(("qwen3_5", "qwen3_6", "qwen3_8"))),
        *((name, {}, "") for name in ("gptoss", "phi3_5", "cohere2", "llama3_2", "muse_glimmer")),
    ],
)
def test_the_opening_is_what_follows_the_role(name: str, options: dict[str, Any], opening: str):
    conversation = [said("user", "What?"), said("assistant", "A cat."), said("user", "And here?")]
    for messages in (conversation[:1], conversation):
        assert template(name, **options).opening(messages) == (opening, "")


def test_a_prompt_of_plain_text_may_end_in_a_thought():
    plain = template("qwen3_vl")
    assert plain.opening("<|im_start|>assistant\n<think>\n") == (THINKS, "")
    assert plain.opening("<think> is a tag. What is it for?") == ("", "")


@pytest.mark.parametrize(
    "name, row, begun",
    [
        ("qwen3_vl", "<think>The cat", "<think>The cat"),
        ("qwen3_5_think", "<think>The cat", "The cat"),
        ("qwen3_5_think", "The answer is", "\n</think>\n\nThe answer is"),
        ("qwen3_5_nothink", "The answer is", "The answer is"),
        ("qwen3_5_nothink", "<think>A cat.</think>\n<answer>", "<answer>"),
    ],
)
def test_a_turn_that_the_row_begins_continues_the_opening(name: str, row: str, begun: str):
    assert template(name).opening([said("user", "What?"), said("assistant", row)]).from_row == begun


@pytest.mark.parametrize("name", [*VISION, "glm4v"])
def test_all_text_is_shown_and_nothing_is_printed_as_a_list(name: str):
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}, {"type": "image"}]}
    messages = [
        said("system", "Be brief.", "\n\nUse tools."),
        asked,
        said("assistant", "A cat."),
        said("user", "Sure?"),
    ]
    text = template(name).render(messages)
    assert "Be brief.\n\nUse tools." in text and "'type'" not in text and '"type"' not in text
    places = [text.index(part) for part in ("Be brief.", "What is it?", "A cat.", "Sure?")]
    assert places == sorted(places)


def test_shape_is_blocks_wherever_they_are_shown():
    messages = [said("system", "Be brief."), said("user", "What?")]
    assert template("qwen3_vl").normalize(messages) == messages
    assert template("glm4v").normalize(messages) == [{"role": "system", "content": "Be brief."}, messages[1]]
