"""Every flag of the training command with odd values: it trains and saves, or says what is wrong; never a traceback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.campaigns.outcome import outcome, training
from tests.trainers.test_kill import write_data
from vlm_grpo.cli import train
from vlm_grpo.cli.args import known_flags

# A file of settings, launchers, and what would leave the machine.
REACHING_OUT = {"config", "help", "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"}
REACHING_OUT |= {"ddp_backend", "push_to_hub", "hub_model_id", "hub_token"}
FLAGS = sorted((known_flags("grpo") | known_flags("rloo")) - REACHING_OUT)
VALUES = ("0", "1", "2", "-1", "0.5", "1e-3", "nan", "inf", "true", "false", "none", "auto", "x", "/none/x", "{}",
          "[1]", "steps", "epoch", "", "100")  # fmt: skip
UNSAVED = {"dry_run", "output_dir"}


@pytest.mark.extended
@pytest.mark.parametrize("seed", range(3))
def test_a_flag_trains_or_is_refused_in_words(
    seed: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)  # some values name a folder
    source, faults, trained = random.Random(seed), [], 0
    for number, name in enumerate(FLAGS):
        value, output = source.choice(VALUES), tmp_path / f"out_{number}"
        trainer = "grpo" if name in known_flags("grpo") else "rloo"
        words = training(tiny_model, tmp_path / "a.jsonl", tmp_path, output, **{"trainer": trainer, name: value})
        end = outcome(train.main, words)
        trained += end.status == 0
        is_saved = (output / "model.safetensors").is_file() or name in UNSAVED
        if not end.is_named or (end.status == 0 and not is_saved):
            faults.append((name, value, end.status, end.trace[-600:]))
    assert not faults
    assert trained > 20
