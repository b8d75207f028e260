"""Two real processes on the CPU, with DDP and with DeepSpeed ZeRO-3, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training import picture

ROOT = Path(__file__).resolve().parents[2]
REWARD = (
    "def by_tokens(completion_ids, completions, **columns): return [sum(ids) % 11 / 11 for ids in completion_ids]\n"
)
COMPARED = ("loss", "grad_norm", "reward", "reward_std", "kl", "entropy", "completions/mean_length")
PROCESS_ENVIRONMENT = {
    "one": {"ACCELERATE_USE_CPU": "true"},
    "ddp": {"ACCELERATE_USE_CPU": "true"},
    "zero3": {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu"},
}


ALL_IMAGES = (["0.png", "1.png"], ["2.png"], ["3.png"], ["1.png"])  # of four prompts, two in a step
TEXT_ON_ONE_RANK = (["0.png"], [], [], ["3.png"])


def write_data(folder: Path, rows: tuple = ALL_IMAGES) -> None:
    """Four prompts, no two alike."""
    (folder / "reward.py").write_text(REWARD)
    with (folder / "a.jsonl").open("w") as file:
        for number, images in enumerate(rows):
            picture(number, height=56 + 28 * number).save(folder / f"{number}.png")
            question = "<image>" * len(images) + "Which?" + " please" * number
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": str(number)}]
            file.write(json.dumps({"id": number, "image": images, "conversations": turns}) + "\n")


def flags(mode: str, trainer: str, model: Path, folder: Path, **options: object) -> list[str]:
    processes = 1 if mode == "one" else 2
    words = [
        *("--trainer", trainer, "--model_name_or_path", str(model), "--output_dir", str(folder / mode)),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        *("--data_file_paths", str(folder / "a.jsonl"), "--image_folders", str(folder), "--num_generations", "4"),
        *("--reward_funcs", f"{folder}/reward.py:by_tokens", "--max_completion_length", "8"),
        *("--per_device_train_batch_size", str(8 // processes), "--logging_steps", "1", "--learning_rate", "1e-3"),
        *("--report_to", "none", "--bf16", "false", "--beta", "0.1"),
        *("--shuffle_dataset", "false"),
    ]
    return [*words, *(["--deepspeed", "configs/deepspeed/zero3.json"] if mode == "zero3" else ["--use_cpu", "true"])]


def train(mode: str, trainer: str, model: Path, folder: Path, **options: object) -> list[dict]:
    """The log of a run over the same eight completions a step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if mode != "one" else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "tests.support.scripted",
        *flags(mode, trainer, model, folder, **options),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(mode), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / mode / "trainer_state.json").read_text())["log_history"]


def environment(mode: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "DS_"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return {**known, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **PROCESS_ENVIRONMENT[mode]}


@pytest.mark.multiprocess
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
@pytest.mark.parametrize("rows", [ALL_IMAGES, TEXT_ON_ONE_RANK], ids=["images", "text_on_one_rank"])
def test_two_processes_equal_one(rows: tuple, trainer: str, tiny_model: Path, tmp_path: Path):
    """Also where a process has no image while the other has one: its vision tower runs all the same."""
    write_data(tmp_path, rows)
    options = {"max_steps": 3, "save_strategy": "no"}
    one, ddp, zero3 = (train(mode, trainer, tiny_model, tmp_path, **options) for mode in PROCESS_ENVIRONMENT)
    assert len(one) == 4 and all(entry["grad_norm"] > 1e-3 and entry["reward_std"] > 0.1 for entry in one[:3])
    for two in (ddp, zero3):
        for first, second in zip(one[:3], two[:3], strict=True):
            for name in COMPARED:
                assert second[name] == pytest.approx(first[name], abs=1e-5, rel=1e-5), (name, first["step"])


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_two_processes_resume_in_the_middle_of_a_rollout(mode: str, tiny_model: Path, tmp_path: Path):
    write_data(tmp_path)
    options = {"num_iterations": 2, "save_steps": 3, "max_steps": 5}
    whole = train(mode, "grpo", tiny_model, tmp_path, **options)
    resumed = train(
        mode, "grpo", tiny_model, tmp_path, **options, resume_from_checkpoint=tmp_path / mode / "checkpoint-3"
    )
    names = ("loss", "grad_norm", "entropy", "kl")
    steps = [[[entry[name] for name in names] for entry in log if "loss" in entry] for log in (whole, resumed)]
    assert len(steps[0]) == 5 and steps[0] == steps[1]


@pytest.mark.multiprocess
@pytest.mark.parametrize(("mode", "said"), [("ddp", "Timeout (0:00:25)!"), ("zero3", "SIGABRT")])
def test_stock_hangs_when_one_process_has_text_only(mode: str, said: str, tiny_model: Path, tmp_path: Path):
    """It gathers images only where there are some; without that, ZeRO-3's collectives no longer match."""
    deepspeed = ["configs/deepspeed/zero3.json"] if mode == "zero3" else []
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "tests.support.stock", str(tiny_model), str(tmp_path), *deepspeed]
    done = subprocess.run(command, cwd=ROOT, env=environment(mode), capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and said in done.stderr
