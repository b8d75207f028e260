"""A run whose own code hangs ends with a line and a status, on one process and on several."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_train import LAUNCH, flags
from vlm_grpo.cli.train import main
from vlm_grpo.cli.train_args import UsageError, parse

SLOW = "import time\ndef slow(completions, **columns):\n    time.sleep(600)\n"


@pytest.mark.parametrize(
    "text",
    [
        SLOW,
        "import time\ntime.sleep(600)\n",
    ],
)
def test_a_run_ends_with_a_line(text: str, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "own.py").write_text(text)
    words = flags(tiny_model, tmp_path, reward_time_limit=1)
    assert main([*words, "--reward_funcs", f"{tmp_path / 'own.py'}:slow"]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("vlm-grpo train: reward ") and "has not returned for 1 s (--reward_time_limit" in last


def test_the_flag_needs_code_of_ones_own(tmp_path: Path):
    words = flags(tmp_path, tmp_path, reward_time_limit=9)
    with pytest.raises(UsageError, match="--reward_time_limit has no effect without a user-defined reward"):
        parse([*words, "--reward_funcs", "accuracy"])
    with pytest.raises(UsageError, match=r"--reward_time_limit -1.*must be a finite number of at least 0"):
        parse([word if word != "9" else "-1" for word in words])
    assert parse([*words, "--reward_funcs", "own.py:slow"])[1].reward_time_limit == 9


@pytest.mark.extended
@pytest.mark.multiprocess
def test_one_process_of_two_hangs_and_both_end(tiny_model: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "import os, time\n"
        "def slow(completions, **columns):\n"
        "    if os.environ['RANK'] == '1': time.sleep(600)\n"
        "    return [1.0] * len(completions)\n"
    )
    words = flags(tiny_model, tmp_path, reward_time_limit=3)
    begun = time.monotonic()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(LAUNCH), *words]
    done = subprocess.run(
        [*command, "--reward_funcs", f"{tmp_path / 'own.py'}:slow"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode != 0 and "reward 'slow'" in done.stderr and "for 3 s" in done.stderr
    assert time.monotonic() - begun < 120
