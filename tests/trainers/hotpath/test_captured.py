"""The step that is recorded for a GPU, here without a recording: buffers, mask and cache of fixed size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.families import FAMILIES_TINY
from tests.support.training import image_rows
from vlm_grpo.trainers.hotpath.cache import fixed
from vlm_grpo.trainers.hotpath.captured import CapturedStep
from vlm_grpo.trainers.hotpath.sampling import prompt_batch
from vlm_grpo.trainers.rollout import PromptEncoder

TOKENS = 6


def greedy(model: torch.nn.Module, inputs: dict[str, Tensor], record: Callable) -> tuple[Tensor, Tensor]:
    """Return (B, TOKENS) tokens after each prompt, two completions of each, and the logits of all but the first."""
    has_mrope = hasattr(model.model, "get_rope_index")
    places = {} if has_mrope else {"position_ids": (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}
    outputs = model(**inputs, **places, use_cache=True, return_dict=True)
    rows = torch.arange(len(inputs["input_ids"])).repeat_interleave(2)
    prompt = inputs["input_ids"].size(1)
    cache = fixed(outputs.past_key_values, rows, model, prompt + TOKENS)
    step = CapturedStep(model, cache, record)
    mask, tokens = inputs["attention_mask"][rows], outputs.logits[rows, -1].argmax(dim=-1, keepdim=True)
    deltas = getattr(model.model, "rope_deltas", None)
    first = mask.sum(dim=1, keepdim=True) + (0 if deltas is None else deltas[rows])
    found, logits = [tokens], []
    for number in range(TOKENS - 1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        place = first + number
        place = place if deltas is None else place.expand(3, -1, -1)
        logits.append(step(found[-1], mask, position_ids=place).clone())
        found.append(logits[-1].argmax(dim=-1, keepdim=True))
    return torch.cat(found, dim=1), torch.stack(logits)


def failing(run: Callable) -> Callable:
    run()  # whatever it does to the cache
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_clip", "smolvlm"])
@pytest.mark.parametrize("record", [lambda run: run, failing], ids=["recorded", "cannot be recorded"])
def test_a_captured_step_gives_the_tokens_of_generate(family: str, record: Callable, tmp_path: Path):
    FAMILIES_TINY[family](tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompts = PromptEncoder(processor, {}).encode(list(image_rows(3)))
    inputs = prompt_batch(prompts, processor.tokenizer.pad_token_id)
    with torch.no_grad():
        options = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": -1}
        wanted = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        tokens, logits = greedy(model, inputs, record)
    rows = wanted.sequences[:, inputs["input_ids"].size(1) :].repeat_interleave(2, dim=0)
    assert tokens.tolist() == rows.tolist()
    assert torch.allclose(logits, torch.stack(wanted.logits[1:]).repeat_interleave(2, dim=1), atol=1e-5)
