"""The tokens of a prompt are those that the family's own processor makes of it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from transformers import AutoProcessor

from tests.support.families import FAMILIES_TINY
from tests.support.templates import GLM4V, published
from tests.support.training import picture
from vlm_grpo.rollouts.encoder import TOOLS_COLUMN, PromptEncoder

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Show a picture.",
        "parameters": {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]},
    },
}
IMAGES = [picture(0), picture(1, 56, 84)]
# A tiny processor, the template that goes with its kind, and whether that knows tools.
PAIRS = [
    ("qwen2_vl", "qwen2_5_vl", False),
    ("qwen2_5_vl", "qwen2_5_vl", False),
    *(("qwen3_vl", name, True) for name in ("qwen3_vl", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8")),
    ("llava_clip", "llava_next", False),
    ("llava_clip", "lfm2_2_5_vl", True),
    ("smolvlm", "smolvlm", False),
    ("smolvlm", "idefics3", False),
    ("gemma3", "gemma3", False),
    ("glm4v", "glm4v", False),
    ("qwen3_5_think", "qwen3_5_think", True),
    ("gemma4", "gemma4_v5", True),
    ("lfm2_vl", "lfm2_2_5_vl", True),
    ("idefics3", "idefics3", False),
    ("llava_next", "llava_next", False),
]


@cache
def _saved(family: str, folder: Any) -> Any:
    FAMILIES_TINY[family](folder / family)
    return AutoProcessor.from_pretrained(folder / family)


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("processors")
    return lambda family, template: _with(_saved(family, folder), template)


def _with(processor: Any, template: str) -> Any:
    processor = copy.copy(processor)
    processor.chat_template = GLM4V if template == "glm4v" else published(template)
    return processor


def words(role: str, *parts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": part} for part in parts]}


def asked(images: list[Any]) -> dict[str, Any]:
    first, second = ({"type": "image", **({"image": image} if image else {})} for image in images)
    question = [first, {"type": "text", "text": "Is this "}, second, {"type": "text", "text": "?"}]
    return {"role": "user", "content": question}


@pytest.mark.parametrize(
    "family, template, with_tools",
    [(family, template, tools) for family, template, knows in PAIRS for tools in ([False, True] if knows else [False])],
)
def test_prompts_equal_those_of_the_processor(family: str, template: str, with_tools: bool, processors: Any):
    processor, tools = processors(family, template), [LOOK] if with_tools else None
    more = [words("assistant", "A cat."), words("user", "Sure?")]
    row = {"prompt": [words("system", "Be brief.", " Be right."), asked([None, None]), *more], "images": IMAGES}
    sample = PromptEncoder(processor, {}).encode([{**row, TOOLS_COLUMN: tools}])[0]
    system = words("system", "Be brief. Be right.")
    if template == "glm4v":
        system["content"], more[0] = system["content"][0]["text"], {"role": "assistant", "content": "A cat."}
    theirs = processor.apply_chat_template(
        [[system, asked(IMAGES), *more]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **({"tools": tools} if tools else {}),
    )
    assert sample.input_ids == theirs["input_ids"][0].tolist()
    text = processor.tokenizer.decode(sample.input_ids)
    assert "Be brief. Be right." in text and "{'type'" not in text and ("look" in text) == with_tools
