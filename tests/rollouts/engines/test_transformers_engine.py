"""The engine of training and evaluation: shared or plain prefill, limits, stop tokens and further processors."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from tests.support.training import image_rows
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.transformers import TransformersEngine

STOP = 2


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    """A model whose next tokens depend on the text before them."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> list[EncodedPrompt]:
    """Three prompts of different lengths, the first one twice."""
    one, two, three = PromptEncoder(AutoProcessor.from_pretrained(tiny_model), {}).encode(list(image_rows(3)))
    return [one, one, two, three]


def engine(model: nn.Module, **options: Any) -> TransformersEngine:
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": STOP, "pad_token_id": 0}
    return TransformersEngine(
        open_model=lambda: nullcontext(model),
        config=GenerationConfig(**settings),
        to_device=dict,
        pad_token_id=0,
        stop_token_ids=[STOP],
        **options,
    )


class Always(LogitsProcessor):
    """Lets row b say its tokens, one after the other."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows, self.step = torch.tensor(rows), 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -float("inf"))
        self.step += 1
        return chosen.scatter(1, self.rows[:, self.step - 1, None], 0.0)


@torch.no_grad()
def test_engine_gives_the_same_completions_with_shared_and_plain_prefill(model: nn.Module, prompts: list):
    plain, shared = (engine(model, shares_prefill=shares).generate(prompts).ids for shares in (False, True))
    assert plain == shared
    assert plain[0] == plain[1] and len({tuple(ids) for ids in plain}) == 3


@torch.no_grad()
def test_engine_prefills_each_unique_prompt_once(model: nn.Module, prompts: list):
    widths: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with hook:
        engine(model, shares_prefill=True).generate(prompts)
        engine(model, shares_prefill=False).generate(prompts)
    longest = max(len(prompt.input_ids) for prompt in prompts)
    assert [shape for shape in widths if shape[1] == longest] == [(3, longest), (4, longest)]


@torch.no_grad()
def test_engine_limits_new_tokens_of_a_call_alone(model: nn.Module, prompts: list):
    generates = engine(model)
    assert {len(ids) for ids in generates.generate(prompts, max_new_tokens=2).ids} == {2}
    assert {len(ids) for ids in generates.generate(prompts).ids} == {6}


@torch.no_grad()
def test_engine_cuts_completions_after_their_stop_token(model: nn.Module, prompts: list):
    said = [[7, 8, STOP, 9, 9, 9], [STOP, 9, 9, 9, 9, 9], [7, 8, 9, 10, 11, 12], [7, 7, 7, 7, 7, STOP]]
    ids = engine(model).generate(prompts, logits_processor=LogitsProcessorList([Always(said)])).ids
    assert ids == [[7, 8, STOP], [STOP], said[2], said[3]]
