"""Episodes of two turns with a picture in each family's own form of calls, by the makers' templates."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor

from tests.support.environments import Gallery, scripted_turns
from tests.support.families import FAMILIES_TINY, tokenizer
from tests.support.templates import MISTRAL, glm_with_images, written_calls
from tests.support.training import picture, settings, user
from vlm_grpo.envs.environment import tool_schema, tools_of
from vlm_grpo.rollouts.decoding import TurnDecoder
from vlm_grpo.tool_call_formats import TOOL_CALL_FORMATS, UNREADABLE_CALL, ToolCall, find_tool_call_format
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
SCHEMA = "Its width and height in pixels."
# Family, template in place of its own, and what its template writes around the result of a tool.
FAMILIES: dict[str, tuple[Callable[[], str] | None, str, str]] = {
    "qwen3_vl_moe": (None, "<tool_response>\ngreen: ", "</tool_response>"),
    "qwen3_vl": (None, "<tool_response>\ngreen: ", "</tool_response>"),
    "qwen3_5_moe": (None, "<tool_response>\ngreen: ", "</tool_response>"),
    "qwen3_5_think": (None, "<tool_response>\ngreen: ", "</tool_response>"),
    "qwen3_5_nothink": (None, "<tool_response>\ngreen: ", "</tool_response>"),
    "gemma4": (None, 'response:look{value:<|"|>green: <|"|>}', "<tool_response|>"),
    "lfm2_vl": (None, "tool\ngreen: ", "<|im_end|>"),
    "glm4v_moe": (glm_with_images, "<tool_response>\ngreen: ", "</tool_response>"),
    "glm46v": (glm_with_images, "<tool_response>\ngreen: ", "</tool_response>"),
    "mistral3": (lambda: MISTRAL, "[TOOL_RESULTS]green: ", "[/TOOL_RESULTS]"),
}


@pytest.mark.parametrize(("family", "kind"), [*((family, "grpo") for family in FAMILIES), ("qwen3_5_think", "rloo")])
def test_an_episode_with_a_picture_is_trained(family: str, kind: str, tmp_path: Path):
    """The call is read, its result with the picture is shown as the template shows it, and the second turn follows."""
    FAMILIES_TINY[family](tmp_path / "model")
    other, before, after = FAMILIES[family]
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    if other is not None:
        processor.chat_template = other()
    form = find_tool_call_format(processor.chat_template)
    tools = [tool_schema(*item) for item in tools_of(Gallery()).items()]
    text = written_calls(processor.chat_template, [ToolCall("look", {"color": "green", "side": 56})], tools)
    call = text[text.index(form.example[:6]) : text.rindex(form.end) + len(form.end)]
    trainer = build(kind, tmp_path, processor)
    thought = "I look.</think>\n\n" if opens_thought(processor) else ""  # its template has opened one
    scripted_turns(trainer, ((thought + call, "it is green"), (thought + call, "it is")))
    seen = watched(trainer)
    trainer.train()
    rollout = seen[0]
    said = processor.tokenizer.decode(rollout["completion_ids"][0])
    assert before in said.replace("<|endoftext|>", "") and after in said[said.index("green: ") :]
    assert "it is green" in said[said.index(after) :]
    prompt = processor.tokenizer.decode(rollout["prompt_ids"][0])
    assert SCHEMA in prompt and SCHEMA not in said  # the template is given the schemas, once
    assert len(rollout["samples"][0].refs) == 2  # the question's picture and the tool's
    assert [e["episodes/shown"] for e in trainer.state.log_history if "episodes/shown" in e] == [1.0]
    assert [e["episodes/failed_calls"] for e in trainer.state.log_history if "episodes/failed_calls" in e] == [0.0]
    assert next(e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e) > 0


def opens_thought(processor: Any) -> bool:
    text = processor.apply_chat_template(user("?"), add_generation_prompt=True, tokenize=False)
    return text.rstrip().endswith("<think>")


def build(kind: str, folder: Path, processor: Any) -> Any:
    trainer, config = KINDS[kind]
    args = config(**settings(folder, max_completion_length=1500, max_steps=1, max_turns=2))
    data = Dataset.from_list([{"prompt": user("which color?"), "image": picture(n)} for n in range(2)])
    return trainer(
        str(folder / "model"), None, args, train_dataset=data, processing_class=processor, environment_factory=Gallery
    )


def watched(trainer: Any) -> list[dict[str, Any]]:
    """Grows by every rollout."""
    seen: list[dict[str, Any]] = []
    collect = trainer._generate_and_score_completions

    def kept(rows: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(collect(rows))
        return seen[-1]

    trainer._generate_and_score_completions = kept
    return seen


def test_a_call_that_cannot_be_read_is_answered_with_the_form(tmp_path: Path):
    FAMILIES_TINY["qwen3_5_nothink"](tmp_path / "model")
    trainer = build("grpo", tmp_path, AutoProcessor.from_pretrained(tmp_path / "model"))
    scripted_turns(trainer, (("<tool_call>{}</tool_call>", "no"),))
    seen = watched(trainer)
    trainer.train()
    said = trainer.processing_class.tokenizer.decode(seen[0]["completion_ids"][0])
    assert "the call cannot be read; expected <tool_call>\n<function=NAME>" in said
    assert torch.isfinite(seen[0]["advantages"]).all()


@pytest.mark.parametrize("form", TOOL_CALL_FORMATS)
def test_the_marks_of_calls_are_kept_when_they_are_special_tokens(form: str):
    """TRL's decoding would drop them, and with them the call."""
    written = {"mistral": '[TOOL_CALLS]NAME[CALL_ID]a1b2c3d4e[ARGS]{"KEY": "TEXT"}'}.get(
        form, TOOL_CALL_FORMATS[form].example
    )
    marks = re.findall(r"<\|?/?[a-z_]+\|?>|<\|\"\|>|\[[A-Z_]+\]", written)
    words = tokenizer(*dict.fromkeys(marks))
    ids = words(written + words.eos_token, add_special_tokens=False)["input_ids"]
    assert (
        TOOL_CALL_FORMATS[form].calls(TurnDecoder(words)(ids))
        == TOOL_CALL_FORMATS[form].calls(written)
        != [UNREADABLE_CALL]
    )
