"""Checkpoints of an own value model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.training import differences, image_rows, settings
from tests.support.value_models import ppo_trainer, saved_value_model
from tests.support.values import head_of
from tests.trainers.test_distributed import weights
from vlm_grpo.trainers.config import VLMGRPOConfig


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_bit_identical(adapter: bool, tiny_model: Path, tmp_path: Path):
    """Checkpoint 3 lies in the middle of the second rollout; beside the value model's file it is a plain one."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "value_warmup_steps": 1, "adapter": adapter}
    whole, resumed = (ppo_trainer(tiny_model, tmp_path, rows=image_rows(), **options) for _ in range(2))
    start = {name: value.clone() for name, value in whole.critic.head.named_parameters()}
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    saved = saved_value_model(checkpoint)
    assert saved.keys() == start.keys() and not (checkpoint / "value_head.safetensors").exists()
    name = "backbone.language_model.layers.0.mlp.up_proj.weight"
    held = [start[name], saved[name], saved_value_model(tmp_path / "checkpoint-6")[name]]
    assert not torch.equal(held[0], held[1]) and not torch.equal(held[1], held[2])
    if not adapter:
        assert weights(checkpoint).keys() == weights(tiny_model).keys()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(head_of(resumed), head_of(whole))
    assert differences(whole, resumed)["weights"] == 0
    names = ("loss", "value_loss", "explained_variance")
    logs = [[[entry.get(name) for name in names] for entry in run.state.log_history[:6]] for run in (whole, resumed)]
    assert logs[0] == logs[1]


def test_a_checkpoint_of_the_other_kind_is_refused(tiny_model: Path, tmp_path: Path):
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for kind, other in (("shared", "own"), ("own", "shared")):
        folder = tmp_path / kind
        ppo_trainer(tiny_model, folder, algorithm_options={"value_model": kind}, **saving).train()
        trainer = ppo_trainer(tiny_model, folder, algorithm_options={"value_model": other}, max_steps=2)
        with pytest.raises(ValueError, match=rf'resume with --algorithm_options \'{{"value_model": "{kind}"}}\''):
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))


def test_an_unknown_kind_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"value_model must be one of shared, own, got \{'value_model': 'both'\}"):
        VLMGRPOConfig.of("ppo", **settings(tmp_path, algorithm_options={"value_model": "both"}))
