"""kill -9 in runs whose checkpoints hold more than weights: each ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.test_kill import command, finish, kill_after, start, write_data

STEPS, KILLS = 12, 5
CONFIGURATIONS = {
    "synced_reference": {"beta": 0.1, "sync_ref_model": "true", "ref_model_sync_steps": 3},
    "dynamic_sampling": {"dynamic_sampling": 3, "gradient_accumulation_steps": 2},
    "ppo": {"algorithm": "ppo", "num_iterations": 2},
    "kl_reward": {"kl_reward_coef": 0.1, "kl_target": 0.01, "steps_per_generation": 3},
}


@pytest.mark.extended
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_where_an_undisturbed_one_ends(name: str, tiny_model: Path, tmp_path: Path):
    write_data(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"max_steps": STEPS, **CONFIGURATIONS[name]}
    words = {output: command("one", tiny_model, tmp_path, output, **options) for output in (whole, killed)}
    log = tmp_path / "log"
    finish(start("one", words[whole], log), log)
    source = random.Random(name)
    for step in sorted(source.sample(range(1, STEPS - 2), KILLS)):
        process = start("one", words[killed], log)
        kill_after(process, killed, step, source.uniform(0, 0.1))
    finish(start("one", words[killed], log), log)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
