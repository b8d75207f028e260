"""The decoding step that a GPU records, here recorded as a plain call: what it copies, what it leaves of the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.families import FAMILIES_TINY
from tests.support.training import image_rows
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.engines import shared_prefill
from vlm_grpo.rollouts.engines.captured_step import CapturedStep
from vlm_grpo.rollouts.engines.shared_prefill import SharedPrefillGenerate, prompt_batch
from vlm_grpo.rollouts.engines.transformers_compat import CACHE

TOKENS = 6
ROWS = [0, 0, 1, 1, 2, 2]


def warmed_up(run: Callable) -> Callable:
    """Run it twice before, as a recording does."""
    run()
    run()
    return run


def failing(run: Callable) -> Callable:
    run()
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_clip", "smolvlm"])
@pytest.mark.parametrize("record", [warmed_up, failing], ids=["recorded", "cannot be recorded"])
def test_a_captured_step_gives_what_generate_gives(
    family: str, record: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Tokens and logits, for prompts of different lengths with images, two completions of each."""
    FAMILIES_TINY[family](tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompts = PromptEncoder(processor, {}).encode(list(image_rows(3)))
    inputs = prompt_batch(prompts, processor.tokenizer.pad_token_id)
    options = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    with torch.no_grad():
        whole = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    seen = []
    monkeypatch.setattr(shared_prefill, "CapturedStep", partial(CapturedStep, record=record))
    monkeypatch.setattr(
        shared_prefill, "choose_tokens", lambda scores, do_sample: seen.append(scores) or scores.argmax(dim=-1)
    )
    with torch.no_grad():
        found = model.generate(**inputs, **options, custom_generate=SharedPrefillGenerate(ROWS, "captured"))
    assert found.tolist() == whole.sequences[ROWS].tolist()
    logits = torch.stack(whole.logits)[:, ROWS]
    is_possible = torch.stack(seen).isfinite()
    assert torch.allclose(torch.stack(seen)[is_possible], logits[is_possible], atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_clip"])
@pytest.mark.parametrize("decoding", ["dynamic", "static", "captured"])
def test_weights_of_32_bits_decode_under_autocast(
    family: str, decoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Keys are of 32 bits there and values of 16; attention casts both, so that the cache may hold 16."""
    FAMILIES_TINY[family](tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompts = PromptEncoder(processor, {}).encode(list(image_rows(3)))
    inputs = prompt_batch(prompts, processor.tokenizer.pad_token_id)
    options = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    seen = []
    monkeypatch.setattr(shared_prefill, "CapturedStep", partial(CapturedStep, record=warmed_up))
    monkeypatch.setattr(
        shared_prefill, "choose_tokens", lambda scores, do_sample: seen.append(scores) or scores.argmax(dim=-1)
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        found = model.generate(**inputs, **options, custom_generate=SharedPrefillGenerate(ROWS, decoding))
    assert found.shape == (len(ROWS), whole.sequences.size(1))
    for logits, scores in zip(whole.logits[:2], seen[:2], strict=True):  # rounding may decide the tokens after these
        is_possible = scores.isfinite()
        assert torch.allclose(scores[is_possible], logits[ROWS].float()[is_possible], atol=0.02)


def test_inputs_of_another_shape_go_through_the_model_itself():
    calls = []

    class Doubling(torch.nn.Module):
        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            calls.append(inputs["input_ids"])
            return 2 * inputs["input_ids"]

    class NoLayers:
        layers = ()

    step, cache = CapturedStep(Doubling(), lambda run: run), {CACHE: NoLayers()}
    assert step(**cache, input_ids=torch.ones(2, 1)).tolist() == [[2], [2]]
    assert step(**cache, input_ids=torch.full((2, 1), 5.0)).tolist() == [[10], [10]]
    assert step(**cache, input_ids=torch.full((3, 1), 7.0)).tolist() == [[14]] * 3
    assert calls[0] is calls[1] and calls[2] is not calls[0]  # the first two read the same buffer
