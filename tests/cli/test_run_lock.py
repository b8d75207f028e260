"""Two runs in one output_dir would delete each other's checkpoints: the second ends with a line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_train import flags
from vlm_grpo.cli import run_lock
from vlm_grpo.cli.run_lock import NAME, lock_output_dir
from vlm_grpo.cli.train import main

# Also forks, as data loaders do: what is forked does not keep the lock.
HOLDER = """
import os, sys, time
from vlm_grpo.cli.run_lock import lock_output_dir
with lock_output_dir(sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of `out`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_a_second_run_names_the_first(
    holder: subprocess.Popen, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr("vlm_grpo.cli.train.build_trainer", lambda *_: pytest.fail("the model is loaded"))
    assert main(flags(tiny_model, tmp_path)) == 2
    who = rf"in use by another run \(process {holder.pid} on {re.escape(socket.gethostname())}, since 20\d\d-\d\d-"
    assert re.search(rf"vlm-grpo train: --output_dir \S+/out: {who}", capsys.readouterr().err)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_killed_run_is_no_obstacle(holder: subprocess.Popen, tiny_model: Path, tmp_path: Path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / NAME).is_file()
    with lock_output_dir(tmp_path / "out"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "out" / NAME).read_text()
    assert not (tmp_path / "out" / NAME).exists()


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", no_locks)
    with lock_output_dir(tmp_path):
        assert "this file system does not support locks" in caplog.text
