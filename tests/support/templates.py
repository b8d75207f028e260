"""The chat templates that makers publish, as TRL ships them, on a small tokenizer."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm_grpo.tiny import build_tiny_qwen

VISION = (
    "gemma3",
    "gemma4",
    "gemma4_v2",
    "gemma4_v3",
    "gemma4_v4",
    "gemma4_v5",
    "idefics3",
    "lfm2_2_5_vl",
    "llava_next",
    "qwen2_5_vl",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "qwen3_vl",
    "smolvlm",
)
# As GLM-4.1V-Thinking writes turns: blocks of users alone are looked into, everything else is printed as it is.
GLM4V = """[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'system' %}<|system|>
{{ m.content }}{% elif m.role == 'user' %}<|user|>
{% if m.content is string %}{{ m.content }}{% else %}{% for item in m.content -%}
{% if item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% elif item.type == 'text' %}{{ item.text }}
{%- endif %}{% endfor %}{% endif %}{% elif m.role == 'assistant' %}<|assistant|>
{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
<think>{% endif %}"""


def published(name: str) -> str:
    """The text of a maker's template."""
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_with(template: str) -> Any:
    """A tokenizer that renders with this template."""
    tokenizer = copy.deepcopy(build_tiny_qwen()[1].tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def with_template(model: Path, folder: Path, template: str) -> Path:
    """A copy of a model's folder with another chat template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


# Mistral's own template is not among those that TRL ships; calls look as in it.
MISTRAL = """{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}{%- if m.role == "assistant" %}
{%- if m.tool_calls %}[TOOL_CALLS][
{%- for call in m.tool_calls %}{% set f = call.function -%}
{"name": {{ f.name | tojson }}, "arguments": {{ f.arguments | tojson }}, "id": {{ call.id | tojson }}}
{{- ", " if not loop.last }}{% endfor %}]{% else %}{{ m.content }}{% endif %}{{ eos_token }}
{%- else %}
{%- if m.role == "tool" %}{% if m.tool_call_id | length != 9 %}{{ raise_exception("no tool_call_id") }}{% endif %}
[TOOL_RESULTS]{% else %}[INST]{% endif %}
{%- if m.content is string %}{{ m.content }}{% else %}{% for block in m.content %}
{%- if block.type == "image" %}[IMG]{% else %}{{ block.text }}{% endif %}{% endfor %}{% endif %}
{%- if m.role == "tool" %}[/TOOL_RESULTS]{% else %}[/INST]{% endif %}{% endif %}{% endfor %}"""


def glm_with_images() -> str:
    """GLM-4.5's template, whose text model shows no images, with those of its vision models."""
    shown = "{%- if item is mapping and item.type == 'text' -%}"
    image = (
        "{%- if item is mapping and item.type == 'image' -%}<|begin_of_image|><|image|><|end_of_image|>{%- endif -%}"
    )
    found = published("glm4moe").replace(shown, image + shown)
    return found.replace("[gMASK]<sop>", "")


def written_calls(template: str, calls: Sequence[Any], tools: Any) -> str:
    """What follows the question where a template writes a turn of calls."""
    functions = [
        {"type": "function", "id": "call00001", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    asked = [{"role": "user", "content": "(asked)"}]
    turn = {"role": "assistant", "content": "", "tool_calls": functions}
    text = tokenizer_with(template).apply_chat_template([*asked, turn], tools=tools, tokenize=False)
    return text.split("(asked)")[-1]
