"""Episodes on two real processes, with DDP and DeepSpeed ZeRO-3, against one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.acting import script
from tests.trainers.test_distributed import MODES, ROOT, assert_equal_steps, environment, flags, weights, write_data

ENVIRONMENT = "tests/support/environments.py:Gallery"


def train(mode: str, trainer: str, model: Path, folder: Path) -> list[dict]:
    words = flags(mode, trainer, model, folder, max_steps=2, environment=ENVIRONMENT)
    words[words.index("--max_completion_length") + 1] = "300"
    command = [sys.executable, "-m", *MODES[mode][0], "tests.support.acting", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(mode), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / mode / "trainer_state.json").read_text())["log_history"]


def test_the_scripts_differ_between_processes():
    assert {len(script("Which?", row)) for row in range(4)} == {1, 2, 3, 4}
    assert {len(script("Which? please", row)) for row in range(4)} == {1}


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("mode", "trainer"),
    [
        ("ddp", "grpo"),
        pytest.param("ddp", "rloo", marks=pytest.mark.extended),
        pytest.param("zero3", "grpo", marks=pytest.mark.extended),
        ("zero3", "rloo"),
    ],
)
def test_two_processes_play_as_one(mode: str, trainer: str, tiny_model: Path, tmp_path: Path):
    """Also where the episodes of one process take four turns with pictures and those of the other only one."""
    write_data(tmp_path)
    one, two = (train(each, trainer, tiny_model, tmp_path) for each in ("one", mode))
    assert_equal_steps(one, two, 2)
    for name in ("turns", "calls", "shown", "dropped"):
        assert one[0][f"episodes/{name}"] == pytest.approx(two[0][f"episodes/{name}"])
    assert 1 < one[0]["episodes/turns"] < 4
    pairs = zip(weights(tmp_path / "one").values(), weights(tmp_path / mode).values(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-4
    assert not torch.equal(*(next(iter(weights(f).values())) for f in (tmp_path / "one", tiny_model)))
