"""Tokens of multi-turn rollouts: those of the whole conversation; the policy's are trained, those of tools masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.families import FAMILIES_TINY
from tests.support.tool_rollouts import (
    READ,
    SCRIPTS,
    TRAINERS,
    RecordedPrompts,
    gallery_trainer,
    logps_of,
    metric,
    policy_mask,
    rendered,
    rollout,
)
from vlm_grpo.rollouts.segment import full_row

KINDS = list(TRAINERS)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_whole_conversation(kind: str, tiny_model: Path, tmp_path: Path):
    """Joined turn by turn, they are what rendering everything at once gives; images of three sizes are expanded."""
    trainer = gallery_trainer(kind, tiny_model, tmp_path)
    recorded = RecordedPrompts(trainer)
    output = rollout(trainer)
    expected = rendered(trainer, recorded.first_conversation())
    prompt = output["prompt_ids"][0][output["prompt_mask"][0] == 1]
    completion = output["completion_ids"][0][output["completion_mask"][0] == 1]
    assert torch.cat([prompt, completion]).tolist() == expected["input_ids"][0].tolist()
    row = full_row(output["samples"][0])
    assert row.input_ids == expected["input_ids"][0].tolist()
    assert torch.equal(row.visual["pixel_values"], expected["pixel_values"])
    assert torch.equal(row.visual["image_grid_thw"], expected["image_grid_thw"])
    assert row.per_token["mm_token_type_ids"] == expected["mm_token_type_ids"][0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_tool_mask_covers_exactly_what_tools_wrote(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer(kind, tiny_model, tmp_path)
    output = rollout(trainer)
    decode, end = trainer.processing_class.tokenizer.decode, trainer.processing_class.tokenizer.eos_token
    for row, script in enumerate(SCRIPTS):
        real = output["completion_mask"][row] == 1
        ids, mask = output["completion_ids"][row][real], output["tool_mask"][row][real] == 1
        assert decode(ids[mask]) == "".join(turn + end for turn in script)
        of_tools = decode(ids[~mask])
        assert of_tools.count("<tool_response>") == of_tools.count("assistant\n") == len(script) - 1
        assert not mask.all() or len(script) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_logged_lengths_count_policy_tokens(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer(kind, tiny_model, tmp_path)
    lengths = policy_mask(rollout(trainer)).sum(dim=1).float()
    assert metric(trainer, "completions/mean_length")[-1] == pytest.approx(lengths.mean().item())


def forward_logps(trainer: Any, conversation: dict[str, torch.Tensor], length: int) -> torch.Tensor:
    """Return the last log-probabilities by the model's own forward over a conversation."""
    trainer.model.eval()
    with torch.no_grad():
        logits = type(trainer.model).forward(trainer.model, **conversation).logits.float()
    scores = logits[0, :-1].log_softmax(dim=-1)
    return scores.gather(1, conversation["input_ids"][0, 1:, None])[-length:, 0]


@pytest.mark.parametrize("shared_prefix", ["auto", "off"])
def test_logprobs_are_those_of_the_whole_conversation(shared_prefix: str, tiny_model: Path, tmp_path: Path):
    """Positions go on through the images of tools, and each completion sees its own pixels."""
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, shared_prefix=shared_prefix)
    recorded = RecordedPrompts(trainer)
    output = rollout(trainer)
    assert trainer.shared_prefix.is_on == (shared_prefix == "auto")
    length = int(output["completion_mask"][0].sum())
    expected = forward_logps(trainer, rendered(trainer, recorded.first_conversation()), length)
    assert torch.allclose(logps_of(trainer, output)[0, :length], expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_tools_have_no_gradient(kind: str, tiny_model: Path, tmp_path: Path):
    """The loss is that of the model's own tokens by hand: their log-probabilities alone move with the weights."""
    trainer = gallery_trainer(kind, tiny_model, tmp_path)
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    scored = []
    score = type(trainer)._get_per_token_logps_and_entropies

    def retain(self: Any, *rest: Any, **options: Any) -> Any:
        scores = score(self, *rest, **options)
        scores[0].retain_grad()
        scored.append(scores[0])
        return scores

    trainer._get_per_token_logps_and_entropies = retain.__get__(trainer)
    output["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    trainer._compute_loss(trainer.model, output).backward()
    is_policy = policy_mask(output).bool()
    gradient = scored[-1].grad
    assert (gradient[is_policy] != 0).all()
    assert (gradient[~is_policy] == 0).all()
    if kind == "rloo":  # -A/B for each of the policy's tokens where the ratio is 1
        assert torch.allclose(gradient, -(output["advantages"] / 4)[:, None] * is_policy, atol=1e-6)


def test_rloo_old_logprobs_sum_over_policy_tokens(tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer("rloo", tiny_model, tmp_path, beta=0.1)
    output = rollout(trainer)
    expected = (logps_of(trainer, output) * policy_mask(output)).sum(dim=1)
    assert torch.allclose(output["old_logps"], expected, atol=1e-4)
    assert metric(trainer, "kl")[-1] == pytest.approx(0.0, abs=1e-6)


def test_a_placeholder_that_the_model_writes_drops_that_completion_alone(tiny_model: Path, tmp_path: Path):
    broken = ("<|image_pad|>", "and on")
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, scripts=(*SCRIPTS[:3], (READ, *broken)))
    output = rollout(trainer)
    lengths = policy_mask(output).sum(dim=1)
    assert lengths[3] == 0
    assert (lengths[:3] > 0).all()
    assert metric(trainer, "episodes/dropped") == [0.25]
    assert len(output["samples"][0].refs) == 3  # the others keep their pixels
    trainer.train()
    assert all(entry["loss"] == entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_clip", "internvl", "smolvlm"])
def test_packed_and_padded_logprobs_agree_where_completions_have_images(family: str, tmp_path: Path):
    """In other families too, and training goes through."""
    FAMILIES_TINY[family](tmp_path / "model")
    trainer = gallery_trainer("grpo", tmp_path / "model", tmp_path, max_steps=1, max_completion_length=1500)
    output = rollout(trainer)
    packed = logps_of(trainer, output)
    trainer.shared_prefix.is_on = False
    padded = logps_of(trainer, output)
    real = output["completion_mask"].bool()
    assert torch.allclose(packed[real], padded[real], atol=1e-4)
    trainer.train()
    assert len(output["samples"][0].refs) == 3
