"""A disk that gets full while a checkpoint or a model is written costs only that; the error says what to do.

The limit on the size of files stands for the disk: it needs no rights, and what comes first fails as on a full one.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.trainers.test_resume import build, weights_differ
from vlm_grpo.trainers.checkpoints import last_complete, validate_checkpoint
from vlm_grpo.trainers.saving import SavingError, expected_bytes, folder_bytes, readable_bytes, writing_checkpoint

OPTIMIZER_FAILS = 500_000  # bytes: between the sizes of the two files
WEIGHTS_FAIL = 100_000


@contextmanager
def largest_file(count: int) -> Iterator[None]:
    """No file may grow beyond some bytes: writing more is an error of the operating system, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class FullAt(TrainerCallback):
    """The disk is full from a step on."""

    def __init__(self, step: int, count: int) -> None:
        self.step, self.count = step, count

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step + 1 == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.count, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def run_until_full(model: Path, folder: Path, count: int, **options: Any) -> str:
    """Train with a checkpoint a step until the third does not fit; what the error says."""
    trainer = build("grpo", model, folder, max_steps=4, save_steps=1, **options)
    trainer.add_callback(FullAt(3, count))
    with largest_file(resource.RLIM_INFINITY), pytest.raises(SavingError) as caught:
        trainer.train()
    return str(caught.value)


@pytest.mark.parametrize("count", [OPTIMIZER_FAILS, WEIGHTS_FAIL], ids=["optimizer", "weights"])
def test_the_checkpoint_before_stays_and_the_run_goes_on_from_it(count: int, tiny_model: Path, tmp_path: Path):
    """Also with room for one checkpoint alone: the older goes only when the newer is whole."""
    said = run_until_full(tiny_model, tmp_path / "run", count, save_total_limit=1, num_iterations=2)
    assert str(tmp_path / "run" / "checkpoint-3") in said and "could not be written" in said
    assert "checkpoint-2 and what came before are whole" in said and "--resume_from_checkpoint true" in said
    assert f"about {readable_bytes(folder_bytes(tmp_path / 'run' / 'checkpoint-2'))}" in said and " are free" in said
    assert validate_checkpoint(tmp_path / "run" / "checkpoint-3") == "no trainer_state.json"
    assert last_complete(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"

    options = {"max_steps": 4, "num_iterations": 2}
    resumed = build("grpo", tiny_model, tmp_path / "run", save_steps=1, **options)
    resumed.train(resume_from_checkpoint=True)
    whole = build("grpo", tiny_model, tmp_path / "whole", save_strategy="no", **options)
    whole.train()
    assert weights_differ(resumed, whole) == 0 and validate_checkpoint(tmp_path / "run" / "checkpoint-3") is None


def test_without_an_earlier_checkpoint_the_error_tells_the_size_of_the_model(tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, max_steps=1, save_steps=1)
    with largest_file(WEIGHTS_FAIL), pytest.raises(SavingError, match="no earlier checkpoint is there") as caught:
        trainer.train()
    assert f"about {readable_bytes(expected_bytes(trainer.model))}" in str(caught.value)


def test_a_checkpoint_that_is_written_again_stays_until_the_new_one_is_whole(tiny_model: Path, tmp_path: Path):
    build("grpo", tiny_model, tmp_path, max_steps=3, save_steps=1).train()
    before = (tmp_path / "checkpoint-3" / "optimizer.pt").stat().st_ino
    again = build("grpo", tiny_model, tmp_path, max_steps=3, save_steps=1, learning_rate=0.1)
    with largest_file(OPTIMIZER_FAILS), pytest.raises(SavingError, match="checkpoint-2"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [validate_checkpoint(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3)] == [None, None, None]
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "checkpoint-3" / "optimizer.pt").stat().st_ino != before
    assert not list(tmp_path.glob("replaced-*"))


def test_a_kill_while_a_checkpoint_is_written_again_leaves_no_mixture(tiny_model: Path, tmp_path: Path):
    """Within the block the run may be killed: what lies there then is what the block wrote."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    model = torch.nn.Linear(1, 1)
    with writing_checkpoint(folder, model=model, is_main=True, wait=lambda: None):
        assert not folder.exists() and (tmp_path / "replaced-checkpoint-1").is_dir()
        folder.mkdir()
    assert folder.is_dir() and not (tmp_path / "replaced-checkpoint-1").exists()


def test_a_final_model_is_replaced_only_by_a_whole_one(tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, max_steps=1, save_strategy="no")
    trainer.save_model(str(tmp_path))
    before = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")  # of an older, larger model
    trainer.train()
    with largest_file(WEIGHTS_FAIL), pytest.raises(SavingError, match="could not be written"):
        trainer.save_model(str(tmp_path))
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], kept[name]) for name in before)
    trainer.save_model(str(tmp_path))
    after = load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "model.partial").exists() and not (tmp_path / "model.safetensors.index.json").exists()
    assert (tmp_path / "preprocessor_config.json").is_file() or (tmp_path / "processor_config.json").is_file()


def test_the_state_that_makes_a_checkpoint_complete_waits_for_every_process(tiny_model: Path, tmp_path: Path):
    """When the processes meet for the last time, this one's rollout is written and trainer_state.json is not."""
    trainer = build("grpo", tiny_model, tmp_path, max_steps=1, save_steps=1)
    meetings, wait = [], trainer.accelerator.wait_for_everyone
    folder = tmp_path / "checkpoint-1"

    def recorded() -> None:
        meetings.append(
            [(folder / name).is_file() for name in ("training_state/rollout_0.safetensors", "trainer_state.json")]
        )
        wait()

    trainer.accelerator.wait_for_everyone = recorded
    trainer.train()
    assert [True, False] in meetings and validate_checkpoint(folder) is None


def test_sizes_are_written_as_people_read_them():
    assert [readable_bytes(count) for count in (12, 1_500, 2_340_000, 7.2e9, 3e12)] == [
        "12 B",
        "1.5 KB",
        "2.3 MB",
        "7.2 GB",
        "3000.0 GB",
    ]


def test_an_adapter_is_expected_to_take_little():
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 1, bias=False))
    assert expected_bytes(model) == 110 * 4 + 110 * 8
    model[0].requires_grad_(False)
    assert expected_bytes(model) == 110 * 4 + 10 * 8
    model.peft_config = {}
    assert expected_bytes(model) == 10 * 4 + 10 * 8
