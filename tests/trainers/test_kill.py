"""kill -9 at random moments, then --resume_from_checkpoint true: the run ends where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import picture

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
KILLS = 10


def command(model: Path, folder: Path, output: Path) -> list[str]:
    words = [
        *("--model_name_or_path", str(model), "--output_dir", str(output), "--data_file_paths", f"{folder}/a.jsonl"),
        *("--image_folders", str(folder), "--reward_funcs", f"{folder}/reward.py:by_tokens", "--num_generations", "4"),
        *("--per_device_train_batch_size", "4", "--max_completion_length", "6", "--max_steps", str(STEPS)),
        *("--num_iterations", "2", "--save_steps", "1", "--save_total_limit", "3", "--learning_rate", "1e-3"),
        *("--report_to", "none", "--bf16", "false", "--use_cpu", "true", "--gradient_checkpointing", "false"),
        *("--resume_from_checkpoint", "true", "--logging_steps", "1"),
    ]
    return [sys.executable, "-m", "vlm_grpo.grpo_jsonl", *words]


def start(words: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, env=environment, stdout=log.open("a"), stderr=subprocess.STDOUT)


def newest(output: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


def kill_after(process: subprocess.Popen, output: Path, step: int, delay: float) -> None:
    """Kill the process a moment after it began to write the checkpoint of a step."""
    end = time.monotonic() + 120
    while newest(output) < step and process.poll() is None:
        assert time.monotonic() < end, "the run did not get on"
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_killed_ten_times_ends_where_an_undisturbed_one_ends(tiny_model: Path, tmp_path: Path):
    (tmp_path / "reward.py").write_text(
        "def by_tokens(completion_ids, completions, **columns): return [sum(ids) % 11 / 11 for ids in completion_ids]\n"
    )
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(5):
            picture(number).save(tmp_path / f"{number}.png")
            turns = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": str(number)}]
            file.write(json.dumps({"id": number, "image": f"{number}.png", "conversations": turns}) + "\n")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(command(tiny_model, tmp_path, whole), tmp_path / "whole.log").wait(timeout=200) == 0
    source = random.Random(0)
    for step in sorted(source.sample(range(1, STEPS - 2), KILLS)):
        process = start(command(tiny_model, tmp_path, killed), tmp_path / "killed.log")
        kill_after(process, killed, step, source.uniform(0, 0.1))
    assert start(command(tiny_model, tmp_path, killed), tmp_path / "killed.log").wait(timeout=200) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, killed)]
    first, second = ([entry["loss"] for entry in log if "loss" in entry] for log in losses)
    assert first == second and len(first) == STEPS
