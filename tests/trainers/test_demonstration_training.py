"""Every algorithm with demonstrations: packing, paths and a resume change nothing, every option has an effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText

from tests.support.demonstrations import (
    NAMES,
    build,
    trained,
)
from tests.support.training import differences


@pytest.mark.parametrize("name", NAMES)
def test_packing_and_paths_change_nothing(name: str, same_completions: None, tiny_model: Path, tmp_path: Path):
    """One micro-batch, four of them (whose groups are torn), and the plain path; two steps, one of them off-policy."""
    common = {"max_steps": 2, "num_iterations": 2, "learning_rate": 1e-2, "shuffle_dataset": False}
    whole = trained(name, tiny_model, tmp_path, **common)
    parts = trained(name, tiny_model, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    plain = trained(name, tiny_model, tmp_path, shared_prefix="off", **common)
    start = AutoModelForImageTextToText.from_pretrained(tiny_model).state_dict()
    moved = max((value - start[key]).abs().max().item() for key, value in whole.model.state_dict().items())
    assert moved > 1e-3
    for other in (parts, plain):
        assert differences(whole, other)["weights"] < 2e-4  # a step moves by 1e-2
        norms = [[entry["grad_norm"] for entry in run.state.log_history[:2]] for run in (whole, other)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_bit_equal(name: str, tiny_model: Path, tmp_path: Path):
    """In the middle of the second rollout; with an adapter, as most run it."""
    common = {"num_iterations": 2, "max_steps": 5, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
    adapter = LoraConfig(r=4, lora_alpha=64) if name in ("luffy", "chord") else None
    whole = trained(name, tiny_model, tmp_path, adapter=adapter, **common)
    again = build(name, tiny_model, tmp_path, adapter=adapter, **common)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 5


OPTIONS = {
    "luffy": [{"expert_rows": 2}, {"luffy_gamma": 0.5}],
    "srft": [{"correct_above": 0.2}, {"srft_sft": 5.0}, {"srft_rl": 0.5}],
    "hpt": [{"correct_above": 0.75, "hpt_threshold": 0.6}],
    "chord": [{"mu_warmup": 0, "expert_batch": 5}, {"mu_warmup": 0, "expert_batch": 3, "phi": True}],
    "uft": [
        {"hint_high": 0.05},
        {"hint_steps": 1},
        {"hint_low": 0.5, "hint_steps": 1},
        {"hint_coef": 5.0},
        {"hint_segments": 1},
    ],
}


@pytest.mark.parametrize(("name", "options"), [(name, one) for name, many in OPTIONS.items() for one in many])
def test_every_option_has_an_effect(name: str, options: dict, same_completions: None, tiny_model: Path, tmp_path: Path):
    common = {"max_steps": 2, "learning_rate": 1e-2, "shuffle_dataset": False}
    default = trained(name, tiny_model, tmp_path, **common)
    changed = trained(name, tiny_model, tmp_path, algorithm_options=options, **common)
    pairs = zip(default.model.state_dict().values(), changed.model.state_dict().values(), strict=True)
    assert max((one - other).abs().max().item() for one, other in pairs) > 1e-4
