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
from tests.trainers.test_distributed import REWARD, ROOT, environment

TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ADAPTER_LATE_ROLLOUTS = {
    "trainer": "rloo",
    "use_peft": "true",
    "lora_target_modules": "all-linear",
    "beta": 0.1,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
}


def command(mode: str, model: Path, folder: Path, output: Path, **options: object) -> list[str]:
    words = [
        *("--model_name_or_path", str(model), "--output_dir", str(output), "--data_file_paths", f"{folder}/a.jsonl"),
        *("--image_folders", str(folder), "--reward_funcs", f"{folder}/reward.py:by_tokens", "--num_generations", "4"),
        *("--per_device_train_batch_size", "4", "--max_completion_length", "6", "--learning_rate", "1e-3"),
        *("--save_steps", "1", "--save_total_limit", "3", "--report_to", "none", "--bf16", "false"),
        *("--gradient_checkpointing", "false", "--resume_from_checkpoint", "true", "--logging_steps", "1"),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        *(["--deepspeed", "configs/deepspeed/zero3.json"] if mode == "zero3" else ["--use_cpu", "true"]),
    ]
    return [sys.executable, *(TWO_PROCESSES if mode != "one" else []), "-m", "vlm_grpo.grpo_jsonl", *words]


def start(mode: str, words: list[str], log: Path) -> subprocess.Popen:
    """A run in a session of its own: the launcher and its processes are killed together."""
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**environment(mode), "PYTHONUNBUFFERED": "1"},
        stdout=log.open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, log: Path) -> None:
    assert process.wait(timeout=200) == 0, log.read_text()[-6000:]


def newest(output: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


def kill_after(process: subprocess.Popen, output: Path, step: int, delay: float) -> None:
    """Kill the whole run a moment after it began to write the checkpoint of a step."""
    end = time.monotonic() + 120
    while newest(output) < step and process.poll() is None:
        assert time.monotonic() < end, "the run did not get on"
        time.sleep(0.002)
    time.sleep(delay)
    assert process.poll() is None, "the run ended by itself"
    kill(process)


def kill(process: subprocess.Popen) -> None:
    """kill -9 to the launcher and its processes, which are groups of their own in its session."""
    for pid in members(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def members(session: int) -> list[int]:
    """Every process of a session, the one that leads it last."""
    found = subprocess.run(["ps", "-s", str(session), "-o", "pid="], capture_output=True, text=True, check=True)
    return sorted((int(word) for word in found.stdout.split()), reverse=True)


def write_data(folder: Path) -> None:
    (folder / "reward.py").write_text(REWARD)
    with (folder / "a.jsonl").open("w") as file:
        for number in range(5):
            picture(number).save(folder / f"{number}.png")
            turns = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": str(number)}]
            file.write(json.dumps({"id": number, "image": f"{number}.png", "conversations": turns}) + "\n")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("mode", "steps", "kills", "options"),
    [
        pytest.param("one", 40, 10, {"num_iterations": 2}, id="grpo"),
        pytest.param("one", 12, 3, ADAPTER_LATE_ROLLOUTS, id="rloo_lora_late_rollouts"),
        pytest.param("ddp", 6, 2, {"num_iterations": 2}, id="ddp"),
        pytest.param("zero3", 6, 2, {"num_iterations": 2}, id="zero3"),
    ],
)
def test_a_killed_run_ends_where_an_undisturbed_one_ends(
    mode: str, steps: int, kills: int, options: dict, tiny_model: Path, tmp_path: Path
):
    write_data(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = {
        output: command(mode, tiny_model, tmp_path, output, max_steps=steps, **options) for output in (whole, killed)
    }
    logs = {output: output.with_suffix(".log") for output in (whole, killed)}
    finish(start(mode, words[whole], logs[whole]), logs[whole])
    source = random.Random(0)
    for step in sorted(source.sample(range(1, steps - 2), kills)):
        process = start(mode, words[killed], logs[killed])
        kill_after(process, killed, step, source.uniform(0, 0.1))
    finish(start(mode, words[killed], logs[killed]), logs[killed])
    (weights,) = {path.name for path in whole.glob("*.safetensors")}
    one, other = (load_file(folder / weights) for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, killed)]
    first, second = ([entry["loss"] for entry in history if "loss" in entry] for history in histories)
    assert first == second and len(first) == steps and len(set(first)) > 1
