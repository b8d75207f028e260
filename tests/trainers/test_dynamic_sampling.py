"""Dynamic sampling inside a training: every group of a rollout has a signal, nothing sampled is lost, runs resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import differences, image_rows, settings
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.state_file import load_state

LONG = {"per_device_train_batch_size": 12, "max_steps": 1, "generation_kwargs": {"min_new_tokens": 8}}


def for_the_first(completions: list, answer: list, **columns: Any) -> list[float]:
    """A signal in the groups of five of twelve rows only."""
    return [float(n % 4 > 1) if int(number) < 5 else 1.0 for n, number in enumerate(answer)]


def nothing(completions: list, **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def build(model: Path, folder: Path, reward: Any = for_the_first, rows: int = 12, **options: Any) -> VLMGRPOTrainer:
    args = VLMGRPOConfig(**settings(folder, **{**LONG, "dynamic_sampling": 10, **options}))
    return VLMGRPOTrainer(str(model), reward, args, train_dataset=image_rows(rows))


def batches_of(trainer: VLMGRPOTrainer) -> list[dict[str, Any]]:
    """What each loss of a training sees."""
    seen: list[dict[str, Any]] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), compute(model, inputs))[1]
    trainer.train()
    return seen


def groups(batch: dict[str, Any]) -> list[int]:
    return [id(sample) for sample in batch["samples"]]


def test_every_group_of_a_rollout_has_a_signal(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, max_steps=4, learning_rate=1e-2)
    batches = batches_of(trainer)
    assert len(batches) == 4
    for batch in batches:
        assert len(batch["advantages"]) == 12 and batch["advantages"].abs().min() > 0
        assert len(set(groups(batch))) <= 3  # two groups may be of one row
        assert batch["num_items_in_batch"] == 96
    rounds = [entry["dynamic_sampling/rounds"] for entry in trainer.state.log_history[:4]]
    shares = [entry["dynamic_sampling/share_with_signal"] for entry in trainer.state.log_history[:4]]
    assert max(rounds) > 1 and 0 < min(shares) < 1
    plain = batches_of(build(tiny_model, tmp_path, dynamic_sampling=0, max_steps=4))
    assert min(batch["advantages"].abs().min() for batch in plain) == 0


def test_what_is_left_over_begins_the_next_rollout_with_its_own_probabilities(tiny_model: Path, tmp_path: Path):
    """A round may give more groups than are missing."""
    trainer = build(tiny_model, tmp_path, max_steps=6, learning_rate=1e-2)
    kept: list[Any] = []
    fill = trainer._generate_and_score_completions

    def watched(inputs: list) -> dict[str, Any]:
        before = trainer.dynamic_sampler.left_over
        rollout = fill(inputs)
        if before is not None:
            size = len(before.completion_ids)
            width = before.completion_ids.size(1)
            assert torch.equal(rollout["completion_ids"][:size, :width], before.completion_ids)
            assert torch.equal(rollout["old_per_token_logps"][:size, :width], before.old_logps)
            new = trainer.completion_logprobs(RolloutBatch.from_trl_dict(rollout), trainer.model).logps.detach()
            assert not torch.allclose(new[:size], rollout["old_per_token_logps"][:size], atol=1e-4)
            assert torch.allclose(new[size:], rollout["old_per_token_logps"][size:], atol=1e-4)
            kept.append(size)
        return rollout

    trainer._generate_and_score_completions = watched
    trainer.train()
    assert kept


def test_a_rollout_of_groups_that_all_vary_is_that_of_the_plain_run(tiny_model: Path, tmp_path: Path):
    """One round, nothing left over, and the same weights: old probabilities are computed, but are those of now."""
    vary = lambda completions, **columns: [float(n % 4 > 1) for n in range(len(completions))]  # noqa: E731
    plain = build(tiny_model, tmp_path, vary, dynamic_sampling=0, max_steps=2)
    plain.train()
    trainer = build(tiny_model, tmp_path, vary, max_steps=2)
    trainer.train()
    assert trainer.dynamic_sampler.left_over is None and trainer.dynamic_sampler.num_drawn == 0
    assert differences(plain, trainer)["weights"] < 1e-5


def test_the_cap_ends_in_a_warning(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        trainer = build(tiny_model, tmp_path, nothing, dynamic_sampling=2)
        (batch,) = batches_of(trainer)
    assert "after 2 rounds 3 groups of a rollout still have equal rewards" in caplog.text
    assert trainer.dynamic_sampler.num_drawn == 6 and len(batch["advantages"]) == 12 and not batch["advantages"].any()


def test_one_reward_may_decide(tiny_model: Path, tmp_path: Path):
    """The other one varies in every group; without the flag their sum would."""

    def other(completions: list, **columns: Any) -> list[float]:
        return [n % 2 / 10 for n in range(len(completions))]

    rewards = [for_the_first, other]
    trainer = build(tiny_model, tmp_path, rewards, dynamic_sampling_reward="for_the_first", max_steps=4)
    trainer.train()
    drawn, trainer = trainer.dynamic_sampler.num_drawn, build(tiny_model, tmp_path, rewards, max_steps=4)
    trainer.train()
    assert drawn > 0 and trainer.dynamic_sampler.num_drawn == 0


def test_a_resumed_run_goes_on_with_what_was_left_over(tiny_model: Path, tmp_path: Path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
    whole = build(tiny_model, tmp_path / "whole", **options)
    whole.train()
    held = [load_state(tmp_path / f"whole/checkpoint-{n}/training_state/left_over_0.safetensors") for n in range(1, 6)]
    step = next(n for n, content in enumerate(held, 1) if content["left_over"] is not None and content["drawn"])
    again = build(tiny_model, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
    assert (
        differences(whole, again)["weights"] == 0.0
        and again.dynamic_sampler.num_drawn == whole.dynamic_sampler.num_drawn
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_sampling_reward": "acuracy"}, "must be one of for_the_first, got"),
    ],
)
def test_what_cannot_work_is_refused(options: dict, message: str, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        build(tiny_model, tmp_path, **options)
