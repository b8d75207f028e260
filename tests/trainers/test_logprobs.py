"""Scores of completions do not change when a blank image row keeps the vision tower in step."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import image_rows, length_reward, picture, settings, user
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.logprobs import PaddedRows, TokenLogprobs, padded_logprobs, with_dummy_row

COMPLETION = 3


@pytest.fixture
def trainer(tiny_model: Path, tmp_path: Path) -> Any:
    return VLMGRPOTrainer(
        str(tiny_model), length_reward, VLMGRPOConfig(**settings(tmp_path)), train_dataset=image_rows()
    )


def scores(trainer: Any, rows: list[dict], *kinds: str) -> TokenLogprobs:
    samples = trainer.encoder.encode(rows)
    longest = max(len(sample.input_ids) for sample in samples)
    padded = [[0] * (longest - len(sample.input_ids)) + [*sample.input_ids, 20, 30, 40] for sample in samples]
    mask = [[0] * (longest - len(sample.input_ids)) + [1] * (len(sample.input_ids) + 3) for sample in samples]
    return padded_logprobs(
        trainer.model,
        samples,
        torch.tensor(padded),
        torch.tensor(mask),
        completion=COMPLETION,
        chunk=2,
        to_device=dict,
        autocast=nullcontext,
        compute_entropy=True,
        dummies={kind: trainer.encoder.dummy_prompt(kind) for kind in kinds},
    )


def test_a_blank_row_pads_to_its_prompt_and_has_no_completion():
    rows = PaddedRows([EncodedPrompt([7], [])], torch.tensor([[7, 8, 9]]), torch.tensor([[1, 1, 0]]))
    joined = with_dummy_row(rows, EncodedPrompt([1, 2, 3], []), completion=2)
    assert joined.input_ids.tolist() == [[0, 0, 7, 8, 9], [1, 2, 3, 0, 0]]
    assert joined.attention_mask.tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    longer = with_dummy_row(rows, EncodedPrompt([], []), completion=2)
    assert longer.input_ids.tolist() == [[7, 8, 9], [0, 0, 0]]


@pytest.mark.parametrize("kinds", [("image",), ("video",), ("image", "video")], ids=str)
def test_scores_with_a_blank_row_are_the_same_and_the_tower_gets_zeros(kinds: tuple[str, ...], trainer: Any):
    rows = [{"prompt": user("what color is it")}, {"prompt": user("red")}, {"prompt": user("blue")}]
    plain, blank = scores(trainer, rows), scores(trainer, rows, *kinds)
    assert plain.logps.shape == (3, COMPLETION)
    assert torch.allclose(plain.logps, blank.logps, atol=1e-6) and torch.allclose(plain.entropies, blank.entropies)
    tower = list(trainer.model.model.visual.parameters())
    plain.logps.sum().backward()
    assert all(parameter.grad is None for parameter in tower)
    trainer.model.zero_grad()
    blank.logps.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in tower)


def test_a_chunk_with_an_image_needs_no_blank_row(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    seen = []
    forward = trainer.model.forward
    monkeypatch.setattr(
        trainer.model, "forward", lambda **inputs: seen.append(len(inputs["input_ids"])) or forward(**inputs)
    )
    rows = [{"prompt": user("what"), "images": [picture(0)]}, {"prompt": user("red")}, {"prompt": user("blue")}]
    scores(trainer, rows, "image")
    assert seen == [2, 2]  # the second chunk has one row of text and the blank one
    seen.clear()
    scores(trainer, rows, "image", "video")
    assert seen == [3, 3]  # both need a video beside what they have
