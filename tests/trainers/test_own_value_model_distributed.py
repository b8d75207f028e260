"""An own value model on two real processes, with DDP and DeepSpeed, against one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.value_models import saved_value_model
from tests.trainers.test_distributed import train, weights, write_data
from vlm_grpo.trainers.resume import deepspeed_shapes

OVER_TWO = {"algorithm": "ppo", "gradient_checkpointing": True, "value_learning_rate": 1e-2, "kl_reward_coef": 0.5}
ADAPTED = {"use_peft": True, "lora_r": 4, "lora_alpha": 64, "lora_dropout": 0}


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("mode", "more"),
    [
        pytest.param("ddp", {}, id="ddp"),
        pytest.param("zero2.yaml", {}, id="zero2", marks=pytest.mark.extended),
        pytest.param("zero3", {}, id="zero3"),
        pytest.param("ddp", ADAPTED, id="ddp_lora", marks=pytest.mark.extended),
        pytest.param("zero3", ADAPTED, id="zero3_lora"),
    ],
)
def test_two_processes_equal_one(mode: str, more: dict, tiny_model: Path, tmp_path: Path):
    """Losses, values and weights of both models; a run resumes in mid-rollout."""
    write_data(tmp_path)
    options = {**OVER_TWO, "algorithm_options": '{"value_model": "own"}', **more}
    options |= {"max_steps": 3, "steps_per_generation": 1, "num_iterations": 2, "save_steps": 1}
    one = train("one", "grpo", tiny_model, tmp_path, **options)
    two = train(mode, "grpo", tiny_model, tmp_path, **options)
    for first, second in zip(one[:3], two[:3], strict=True):
        for name in ("loss", "grad_norm", "value_loss", "explained_variance", "kl_in_reward"):
            assert second.get(name, 0.0) == pytest.approx(first.get(name, 0.0), abs=2e-5, rel=1e-4), name
    if not more:
        expected, saved = weights(tmp_path / "one"), weights(tmp_path / mode)
        assert max((saved[name] - expected[name]).abs().max() for name in expected) < 1e-4
    if mode == "zero3":
        states = sorted((tmp_path / mode / "checkpoint-3").glob("global_step3/*rank_*optim_states.pt"))
        sizes = [path.stat().st_size for path in states]
        assert len(sizes) == 2 and min(sizes) > 0.9 * max(sizes)
        held = deepspeed_shapes(tmp_path / mode / "checkpoint-3")
        assert {name for name in held if name.startswith("value_head.backbone.language_model")}
    owns = [saved_value_model(tmp_path / run / "checkpoint-3") for run in ("one", mode)]
    assert owns[0]["weight"].abs().max() > 1e-2 and owns[0].keys() == owns[1].keys()
    assert max((owns[0][name] - owns[1][name]).abs().max() for name in owns[0]) < 1e-3  # a step moves by 1e-2
    again = train(
        mode, "grpo", tiny_model, tmp_path, **options, resume_from_checkpoint=tmp_path / mode / "checkpoint-1"
    )
    assert [entry["loss"] for entry in again[:3]] == [entry["loss"] for entry in two[:3]]
    resumed = saved_value_model(tmp_path / mode / "checkpoint-3")
    assert all(torch.equal(resumed[name], owns[1][name]) for name in resumed)
