"""The chat templates that makers publish, as TRL ships them, on a small tokenizer."""

from __future__ import annotations

import copy
import shutil
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
