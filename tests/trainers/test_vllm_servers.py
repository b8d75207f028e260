"""Two trainer processes and a real vLLM server, which is killed in the middle; no vLLM in the trainers' environment.

Runs where the variable VLLM_PYTHON names an interpreter with vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_server import SIZE, VARIABLE, VLLMServer, free_port
from tests.trainers.test_distributed import MODES, ROOT, environment, flags, write_data
from vlm_grpo.cli.evaluate import main as evaluate
from vlm_grpo.tiny import save_tiny_qwen

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.multiprocess,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no interpreter with vLLM"),
]
ADAPTED = {"use_peft": True, "lora_r": 4, "lora_alpha": 64, "lora_dropout": 0}
LARGEST = "sampling/sampling_logp_difference/max"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    folder = tmp_path_factory.mktemp("server")
    server = VLLMServer(save_tiny_qwen(folder / "model", SIZE), folder / "log", free_port())
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def start(mode: str, server: VLLMServer, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a training whose completions the server samples."""
    write_data(folder)
    options = {"rollout_engine": "vllm", "rollout_url": server.url, "save_strategy": "no", **options}
    words = [sys.executable, "-m", *MODES[mode][0], "vlm_grpo.grpo_jsonl"]
    words += flags(mode, "grpo", server.model, folder, **options)
    output = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env=environment(mode), stdout=output, stderr=subprocess.STDOUT, text=True)


def finish(run: subprocess.Popen[str], folder: Path) -> list[dict[str, Any]]:
    """Wait for a training, and return the log of its steps."""
    text, _ = run.communicate(timeout=400)
    assert run.returncode == 0, text[-6000:]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if LARGEST in entry]


def test_an_evaluation_agrees_with_transformers(server: VLLMServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The first test of this file: later ones leave the server with the weights of a training."""
    write_data(tmp_path)
    words = ["--model_name_or_path", str(server.model), "--data_file_paths", str(tmp_path / "a.jsonl"), "--use_cpu"]
    words += ["--image_folders", str(tmp_path), "--backend", "vllm", "--base_url", server.url, "--agreement", "4"]
    assert evaluate([*words, "--max_completion_length", "12", "--output_dir", str(tmp_path / "out")]) == 0
    assert "agreement of vllm with transformers on 4 rows: 4 equal completions" in capsys.readouterr().out


def test_a_server_that_is_killed_comes_back_with_the_current_weights(server: VLLMServer, tmp_path: Path):
    run = start("ddp", server, tmp_path, max_steps=6)
    weights = tmp_path / "ddp" / "rollout_engine" / "weights"
    while not list(weights.glob("*-000003")):
        assert run.poll() is None, run.communicate()[0][-6000:]
        time.sleep(0.05)
    server.kill()
    server.start()
    log = finish(run, tmp_path / "ddp")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert max(entry[LARGEST] for entry in log) < 1e-4
    assert all(entry["grad_norm"] > 1e-3 for entry in log)


@pytest.mark.parametrize(
    ("mode", "more"), [("zero3", {}), ("ddp", ADAPTED), ("zero3", ADAPTED)], ids=["zero3", "lora", "zero3_lora"]
)
def test_sharded_and_adapted_policies(mode: str, more: dict[str, Any], server: VLLMServer, tmp_path: Path):
    log = finish(start(mode, server, tmp_path, max_steps=3, **more), tmp_path / mode)
    assert len(log) == 3
    assert max(entry[LARGEST] for entry in log) < 1e-4


def test_an_evaluation_on_weights_of_a_training_is_refused(
    server: VLLMServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The last test of this file."""
    body = json.dumps({"new_version": "run-000003/0a1b"}).encode()  # as a training leaves it
    request = urllib.request.Request(f"{server.url}/update_weight_version", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()
    write_data(tmp_path)
    words = ["--model_name_or_path", str(server.model), "--data_file_paths", str(tmp_path / "a.jsonl"), "--use_cpu"]
    words += ["--image_folders", str(tmp_path), "--backend", "vllm", "--base_url", server.url]
    assert evaluate([*words, "--max_completion_length", "12", "--output_dir", str(tmp_path / "out")]) == 2
    assert "has weights of a training" in capsys.readouterr().err
