"""Trainings with tools: packed as padded, resumed exactly, with dynamic sampling, and with other options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.environments import call
from tests.support.tool_rollouts import TRAINERS, gallery_trainer, policy_mask, question_rows
from tests.support.training import differences
from vlm_grpo.envs.pick_image import PickImage, repeatable_episodes
from vlm_grpo.synthetic.candidates import write_candidates

KINDS = list(TRAINERS)
SAVING = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}


def weights_apart(*trainers: Any) -> float:
    """Return the largest difference of the weights of two trained models."""
    return differences(*trainers)["weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_padded_training_are_the_same(kind: str, tiny_model: Path, tmp_path: Path):
    runs = []
    for mode in ("on", "off"):
        options = {"shared_prefix": mode, "beta": 0.1, "num_iterations": 2, "max_steps": 4}
        runs.append(gallery_trainer(kind, tiny_model, tmp_path / mode, **options))
        runs[-1].train()
    apart = differences(*runs)
    assert apart["logs"] < 1e-5
    assert apart["weights"] < 1e-4  # Adam's first steps are as large for the smallest gradients


@pytest.mark.parametrize("options", [{"steps_per_generation": 2}, {"num_iterations": 2, "beta": 0.1}])
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_within_a_rollout_is_exact(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    """Pictures that tools showed come back with the checkpoint."""
    runs = [gallery_trainer(kind, tiny_model, tmp_path, **SAVING, **options) for _ in range(2)]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert weights_apart(*runs) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_generated_episodes_resume_where_they_were(kind: str, tiny_model: Path, tmp_path: Path):
    write_candidates(tmp_path / "toy")
    picks = tuple((call("pick_image", index=index),) for index in range(4))
    environment = {"environment_factory": lambda: PickImage(data_root=str(tmp_path / "toy"))}
    runs, last_prompts = [], []
    for start in (None, str(tmp_path / "checkpoint-3")):
        episodes = repeatable_episodes(seed=2)
        trainer = gallery_trainer(kind, tiny_model, tmp_path, picks, episodes, **SAVING, **environment)
        trainer.train(resume_from_checkpoint=start)
        runs.append(trainer)
        last_prompts.append(str(trainer._logs["prompt"][-1]))
    assert last_prompts[0] == last_prompts[1]
    assert weights_apart(*runs) == 0.0
    assert runs[0].state.log_history[-2]["reward_std"] > 0


def every_second_row(completions: list, answer: list, **columns: Any) -> list[float]:
    """A reward that varies in the groups of every second row only."""
    return [float(n % 4 > 1) if int(number) % 2 else 1.0 for n, number in enumerate(answer)]


def test_dynamic_sampling_changes_nothing_where_every_group_varies(tiny_model: Path, tmp_path: Path):
    """Gallery's own reward differs in every group."""
    runs = [gallery_trainer("grpo", tiny_model, tmp_path, max_steps=2, dynamic_sampling=rounds) for rounds in (0, 2)]
    for trainer in runs:
        trainer.train()
    weights = [trainer.model.state_dict() for trainer in runs]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-6


def test_dynamic_sampling_fills_rollouts_and_resumes(tiny_model: Path, tmp_path: Path):
    runs, batches = [], []
    sampling = {"reward_funcs": [every_second_row], "dynamic_sampling": 8}
    sampling["dynamic_sampling_reward"] = "every_second_row"
    sizes = {"per_device_train_batch_size": 4, "steps_per_generation": 2, **SAVING, "max_steps": 3, "save_steps": 1}
    for start in (None, str(tmp_path / "checkpoint-1")):
        trainer = gallery_trainer("grpo", tiny_model, tmp_path, data=question_rows(6), **sizes, **sampling)
        record_batches(trainer, batches)
        trainer.train(resume_from_checkpoint=start)
        runs.append(trainer)
    for batch in batches:
        assert batch["advantages"].abs().min() > 0
        assert 0 < policy_mask(batch).sum() < batch["completion_mask"].sum()
    assert weights_apart(*runs) == 0.0


def record_batches(trainer: Any, batches: list[Any]) -> None:
    """Append every micro-batch of a training to a list."""
    compute = trainer._compute_loss

    def recorded(model: Any, inputs: Any) -> Any:
        batches.append(inputs)
        return compute(model, inputs)

    trainer._compute_loss = recorded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_prompt_length": 100}, "--max_prompt_length cannot know what environments add"),
        ({"tool_format": "native"}, "--tool_format native: this model's chat template does not support tools"),
        ({"environment_factory": object}, "environment 'object': object must have a method 'reset'"),
        ({"tools": [lambda x: x]}, "needs a type hint for every argument"),
        ({"algorithm": "remax"}, "needs a greedy completion of each prompt"),
    ],
)
def test_options_that_are_incompatible_with_tools_are_refused(
    options: dict, message: str, tiny_model: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        gallery_trainer("grpo", tiny_model, tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "ppo", "steps_per_generation": 1},
        {"algorithm": "gspo", "steps_per_generation": 1},
        {"algorithm": "reinforce_plus_plus"},
        {"kl_reward_coef": 0.1},
        {"dynamic_sampling": 2},
        {"mask_truncated_completions": True},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_options_that_are_compatible_with_tools_train(options: dict, tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert all(entry["grad_norm"] > 0 for entry in logs)
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
