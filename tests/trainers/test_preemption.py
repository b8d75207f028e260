"""SIGTERM at random moments: a checkpoint of the step, and the resumed run ends where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.preempted import Terminator, compare
from tests.support.training import image_rows, length_reward, settings
from tests.trainers.test_distributed import ON_CPU, ROOT
from tests.trainers.test_distributed import environment as environment_of
from tests.trainers.test_kill import command, finish, newest, start, write_data
from tests.trainers.test_resume import build
from vlm_grpo.cli.train import main
from vlm_grpo.trainers.checkpoints import validate_checkpoint
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.preemption import Preempted

SAVING = {"save_strategy": "steps", "save_steps": 100, "enable_jit_checkpoint": True}


@pytest.fixture
def handler() -> Iterator[None]:
    """Of SIGTERM: it stays as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def restored() -> Iterator[None]:
    """The handler of SIGTERM is what it was, also after a stop, which leaves its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("restored")
def test_ten_random_moments(tiny_model: Path, tmp_path: Path):
    compare(tiny_model, tmp_path)


ONE_STEP = {"steps_per_generation": 1, "num_iterations": 1}
CONFIGURATIONS = [
    {"kind": "rloo", "beta": 0.1},
    {"lora": True, "beta": 0.1},
    {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 3},
    {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"algorithm": "ppo"},
    {"algorithm": "dapo", "dynamic_sampling": 2, "mask_truncated_completions": False},
    {"algorithm": "kl_cov", **ONE_STEP, "num_iterations": 2},
    {"algorithm": "reinforce_plus_plus", **ONE_STEP},
    {"kl_reward_coef": 0.1, "kl_target": 0.01},
    {"shared_prefix": "off", "optim": "adafactor"},
    {"lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 0.1},
]


@pytest.mark.extended
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
def test_random_moments_of_other_trainings(changes: dict, tiny_model: Path, tmp_path: Path):
    compare(tiny_model, tmp_path, count=3, max_steps=18, **changes)


@pytest.mark.multiprocess
def test_ten_random_moments_of_two_processes(tiny_model: Path, tmp_path: Path):
    """One of them gets the signal, or the other, or both at different times; they stop after the same step."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.support.preempted"]
    words = [sys.executable, "-m", *launcher, str(tiny_model), str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=environment_of("ddp"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert done.stdout.count("stopped after") == 2


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("during", ["evaluation", "step"])
def test_an_evaluation_is_neither_waited_for_nor_followed_by_another_step(
    during: str, tiny_model: Path, tmp_path: Path
):
    """A signal in an evaluation stops after it; one in a step leaves out the evaluation that is due."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=3, **SAVING, **options))
    trainer = VLMGRPOTrainer(
        str(tiny_model), length_reward, args, train_dataset=image_rows(), eval_dataset=image_rows(2)
    )
    evaluated = []

    def evaluate() -> dict[str, float]:
        evaluated.append(trainer.state.global_step)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"eval_accuracy": 1.0}

    trainer.evaluate_greedily = evaluate
    if during == "step":
        trainer.add_callback(Terminator(0, 0))
    with pytest.raises(Preempted) as stop:
        trainer.train()
    assert stop.value.step == 1 and evaluated == ([1] if during == "evaluation" else [])
    assert validate_checkpoint(tmp_path / "checkpoint-1") is None


@pytest.mark.usefixtures("handler")
def test_without_the_flag_a_script_keeps_its_own_handler(tiny_model: Path, tmp_path: Path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("own"))
    try:
        trainer = build("grpo", tiny_model, tmp_path, max_steps=2, save_strategy="no")
        trainer.add_callback(terminator := Terminator(0, 0))
        trainer.train()
        terminator.timer.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["own"] and trainer.state.global_step == 2


@pytest.mark.usefixtures("handler")
def test_a_trainer_in_a_thread_leaves_signals_alone(tiny_model: Path, tmp_path: Path):
    """Python lets only the main thread handle them."""
    trainer = build("grpo", tiny_model, tmp_path, max_steps=1, save_strategy="no", enable_jit_checkpoint=True)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 1


AGAIN = """
import os, signal, time
from accelerate import Accelerator
from vlm_grpo.trainers.preemption import Preemption
preemption = Preemption(Accelerator(cpu=True), is_enabled=True)
with preemption.listening():
    child = os.fork()
    if not child:  # such as a worker of a data loader
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    print("child", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes on what all processes got
    print("alive", flush=True)
    preemption._signalled_at -= 60
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
"""


def test_a_second_signal_ends_at_once_and_so_does_the_first_in_a_forked_process():
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "child -15\nalive\n"
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_a_checkpoint_without_optimizer_is_no_use(tmp_path: Path):
    with pytest.raises(ValueError, match="--enable_jit_checkpoint writes a checkpoint to resume from"):
        VLMGRPOConfig(str(tmp_path), enable_jit_checkpoint=True, save_only_model=True, bf16=False)


def test_an_interrupt_is_a_line(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_data(tmp_path)
    monkeypatch.setattr(VLMGRPOTrainer, "training_step", interrupt)
    assert main(command("one", tiny_model, tmp_path, tmp_path / "out", max_steps=1)[3:]) == 130
    assert "vlm-grpo train: interrupted; progress since the last checkpoint is lost\n" in capsys.readouterr().err


def stop(process: subprocess.Popen, log: Path, output: Path, step: int) -> int:
    """Send SIGTERM to a command once it has trained a step; return its exit status."""
    end = time.monotonic() + 120
    while newest(output) < step and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.terminate()
    process.wait(timeout=120)
    return process.returncode


@pytest.mark.multiprocess
def test_the_command_ends_with_a_status_that_schedulers_requeue(tiny_model: Path, tmp_path: Path):
    """No flag is needed; the unfinished model is not left in output_dir as if it were finished."""
    write_data(tmp_path)
    output, log = tmp_path / "out", tmp_path / "log"
    words = command("one", tiny_model, tmp_path, output, max_steps=300)
    assert stop(start("one", words, log), log, output, 2) == 143, log.read_text()[-3000:]
    reached = newest(output)
    checkpoint = f"{output}/checkpoint-{reached}"
    said = f"vlm-grpo train: stopped by SIGTERM, {checkpoint} has been written; resume with the same command"
    assert said in log.read_text() and "Traceback" not in log.read_text()
    assert not (output / "model.safetensors").exists() and not (output / "trainer_state.json").exists()
    state = json.loads((output / f"checkpoint-{reached}" / "trainer_state.json").read_text())
    assert state["global_step"] == reached < 300


@pytest.mark.extended
@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_torchrun_passes_the_signal_on(mode: str, tiny_model: Path, tmp_path: Path):
    """The launcher itself ends with 1, which schedulers requeue as well."""
    write_data(tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = {
        output: command(mode, tiny_model, tmp_path, output, max_steps=12, num_iterations=2)
        for output in (whole, stopped)
    }
    logs = {output: output.with_suffix(".log") for output in (whole, stopped)}
    finish(start(mode, words[whole], logs[whole]), logs[whole])
    for step in (2, 6):
        assert stop(start(mode, words[stopped], logs[stopped]), logs[stopped], stopped, step) == 1
    assert logs[stopped].read_text().count("stopped by SIGTERM") == 2
    finish(start(mode, words[stopped], logs[stopped]), logs[stopped])
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, stopped)]
    first, second = ([entry["loss"] for entry in history if "loss" in entry] for history in histories)
    assert first == second and len(first) == 12
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
