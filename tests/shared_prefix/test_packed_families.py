"""Every family on the fast path against the plain one: log-probabilities, gradients, tokens, tower passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.utils import add_fused_lm_head

from tests.support.families import FAMILIES_TINY, NEEDS_IMAGES, facts_of
from tests.support.training import picture, user
from vlm_grpo.model_utils import placeholder_ids, vision_towers
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.shared_prefill import (
    SharedPrefillGenerate,
    prompt_batch,
    prompt_indices,
    trim_completions,
    unique_prompts,
)
from vlm_grpo.shared_prefix.compat import SharedPrefixState, validate_scoring
from vlm_grpo.shared_prefix.packed_logprobs import Packing, packed_logprobs, prompt_positions
from vlm_grpo.trainers.logprobs import TokenLogprobs, padded_logprobs

SHARING = [name for name in FAMILIES_TINY if facts_of(name).refuses_prefix is None]
EACH_KIND = ("qwen2_5_vl", "qwen3_vl", "llava_clip")  # mRoPE, with deepstack, and positions of one dimension
LENGTHS = (6, 3, 1, 2, 6, 6, 5, 5, 0)  # of three completions for each of three prompts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, list[EncodedPrompt], Any]]:
    """A family's tiny model with TRL's head, its three prompts (one, two and no images) and its processor."""
    root = tmp_path_factory.mktemp("families")

    def load(family: str) -> tuple[nn.Module, list[EncodedPrompt], Any]:
        folder: Path = root / family
        if not folder.exists():
            FAMILIES_TINY[family](folder)
        model = AutoModelForImageTextToText.from_pretrained(folder)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        processor = AutoProcessor.from_pretrained(folder)
        rows = [
            {"prompt": user("what color"), "images": [picture(0)]},
            {"prompt": user("which shape is it"), "images": [picture(1, 56, 112), picture(0)]},
            {"prompt": user("red"), "images": [picture(2)] if family in NEEDS_IMAGES else None},
        ]
        return model, PromptEncoder(processor, {}).encode(rows), processor

    return load


def rows_of(samples: list[EncodedPrompt], lengths: tuple[int, ...], width: int = 6) -> tuple[Tensor, Tensor]:
    """(B, P + C) token ids and mask, prompts padded on the left and completions of plain text on the right."""
    longest = max(len(sample.input_ids) for sample in samples)
    ids = torch.zeros(len(samples), longest + width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    text = torch.randint(20, 60, ids.shape, generator=torch.Generator().manual_seed(0))
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        ids[row, longest - len(sample.input_ids) : longest] = torch.tensor(sample.input_ids)
        ids[row, longest : longest + length] = text[row, :length]
        mask[row, longest - len(sample.input_ids) : longest + length] = 1
    return ids, mask


def packing(model: nn.Module) -> Packing:
    return Packing(lambda sample: prompt_positions(model, sample))


def scored(
    score: Callable, model: nn.Module, samples: list[EncodedPrompt], **options: Any
) -> tuple[TokenLogprobs, Tensor]:
    """Scores of all rows and the gradient of a loss of them."""
    ids, mask = rows_of(samples, LENGTHS)
    common = {"completion": 6, "chunk": 9, "to_device": dict, "autocast": nullcontext, "compute_entropy": True}
    model.zero_grad()
    scores = score(model, samples, ids, mask, **common, **options)
    weight = torch.randn(scores.logps.shape, generator=torch.Generator().manual_seed(1)) * mask[:, -6:]
    ((scores.logps + 0.3 * scores.entropies) * weight).sum().backward()
    return scores, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("family", "checkpointing"), [*((family, None) for family in SHARING), *product(EACH_KIND, (False, True))]
)
def test_packed_rows_score_as_separate_ones(family: str, checkpointing: bool | None, loaded: Callable):
    """`checkpointing` is None without it, else whether it is the reentrant one."""
    model, prompts, _ = loaded(family)
    samples = [prompt for prompt in prompts for _ in range(3)]
    plain, expected = scored(padded_logprobs, model.train(), samples)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    SharedPrefixState("on", [model])
    fast, gradient = scored(packed_logprobs, model, samples, packing=packing(model))
    mask = rows_of(samples, LENGTHS)[1][:, -6:]
    for one, other in zip(plain[:2], fast[:2], strict=True):
        assert ((one - other).abs() * mask).max() < 1e-5
    assert (expected - gradient).norm() < 1e-5 * expected.norm()
    again, _ = scored(padded_logprobs, model, samples)  # rows that are not packed go on as before
    assert ((plain.logps - again.logps).abs() * mask).max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_completions_from_one_prefill_are_those_of_the_plain_path(family: str, loaded: Callable):
    """Greedy, with prompts of different lengths; in the second round the first row ends at its third token."""
    model, prompts, processor = loaded(family)
    samples = [prompts[number] for number in (0, 0, 1, 2, 2, 1, 0)]
    options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": placeholder_ids(model.config, processor)}
    width = prompt_batch(samples, 0)["input_ids"].size(1)
    ends: list[int] = []
    for _ in range(2):
        plain = model.eval().generate(**prompt_batch(samples, 0), **options)
        method = SharedPrefillGenerate(prompt_indices(samples))
        fast = model.generate(**prompt_batch(unique_prompts(samples), 0), custom_generate=method, **options)
        assert trim_completions(fast[:, width:], ends) == trim_completions(plain[:, width:], ends)
        method = SharedPrefillGenerate(prompt_indices(samples), decoding="static")
        static = model.generate(**prompt_batch(unique_prompts(samples), 0), custom_generate=method, **options)
        assert trim_completions(static[:, width:], ends) == trim_completions(plain[:, width:], ends)
        if not ends:
            ends = [int(plain[0, width + 2])]
            options |= {"eos_token_id": ends[0], "pad_token_id": 0}


@pytest.mark.parametrize("family", SHARING)
def test_the_tower_sees_each_prompt_once_in_a_packed_row(family: str, loaded: Callable):
    model, prompts, _ = loaded(family)
    samples = [prompt for prompt in prompts for _ in range(3)]
    rows = []
    tower = vision_towers(model)[0]
    hook = tower.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(next(iter((*args, *kwargs.values()))).size(0)), with_kwargs=True
    )
    scored(padded_logprobs, model, samples)
    plain, rows[:] = sum(rows), []
    SharedPrefixState("on", [model])
    scored(packed_logprobs, model, samples, packing=packing(model))
    hook.remove()
    assert sum(rows) * 3 == plain


def test_a_model_with_sliding_windows_is_refused_by_name(loaded: Callable):
    model, _, _ = loaded("gemma3")
    assert validate_scoring(model) == "layers of sliding_attention"
