"""A checkpoint that was being written when the run was killed is not resumed from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers.trainer_utils import get_last_checkpoint

from tests.trainers.test_resume import build, weights_differ
from vlm_grpo.trainers.checkpoints import last_complete, validate_checkpoint, write_record


@pytest.fixture(scope="module")
def output(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with checkpoints 1, 2 and 10."""
    folder = tmp_path_factory.mktemp("run")
    build("grpo", tiny_model, folder, max_steps=3, save_steps=1).train()
    shutil.rmtree(folder / "checkpoint-3")
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-10")
    (folder / "checkpoint-best").mkdir()
    return folder


@pytest.fixture
def run(output: Path, tmp_path: Path) -> Path:
    shutil.copytree(output, tmp_path / "run")
    return tmp_path / "run"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_the_newest_by_number_is_found(run: Path):
    assert validate_checkpoint(run / "checkpoint-10") is None
    assert last_complete(run) == run / "checkpoint-10"
    assert last_complete(run / "nothing") is None


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_file_that_is_cut_off_makes_it_incomplete(name: str, run: Path, caplog: pytest.LogCaptureFixture):
    cut(run / "checkpoint-10" / name)
    assert last_complete(run) == run / "checkpoint-2"
    assert f"checkpoint-10 is not complete and is skipped: {name} is cut off" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trainer_state.json", "no trainer_state.json"),
        ("model.safetensors", "no weights"),
        ("optimizer.pt", "no optimizer state"),
    ],
)
def test_a_missing_file_makes_it_incomplete(name: str, said: str, run: Path):
    (run / "checkpoint-10" / name).unlink()
    assert validate_checkpoint(run / "checkpoint-10").startswith(said)


def test_all_shards_of_weights_are_looked_at(run: Path):
    folder = run / "checkpoint-10"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = '{"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}'
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {names}}}')
    write_record(folder)
    assert validate_checkpoint(folder) == "model-00002-of-00002.safetensors is missing"
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    write_record(folder)
    assert validate_checkpoint(folder) is None
    cut(folder / "model-00002-of-00002.safetensors")
    assert validate_checkpoint(folder) == "model-00002-of-00002.safetensors is cut off"


def test_fsdp_shards_are_whole_once_their_index_is_written(run: Path):
    folder = run / "checkpoint-10"
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.pt").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_bytes(b"...")
    (folder / "pytorch_model_fsdp_0" / ".metadata").write_bytes(b"...")
    write_record(folder)
    assert validate_checkpoint(folder) == "optimizer_0 is not complete"
    (folder / "optimizer_0" / ".metadata").write_bytes(b"...")
    assert validate_checkpoint(folder) is None


def test_training_resumes_from_the_newest_complete_one(run: Path, tiny_model: Path):
    cut(run / "checkpoint-10" / "optimizer.pt")
    resumed = build("grpo", tiny_model, run, max_steps=3, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    whole = build("grpo", tiny_model, run / "whole", max_steps=3, save_strategy="no")
    whole.train()
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3]
    assert weights_differ(resumed, whole) == 0
    anew = build("grpo", tiny_model, run / "empty", max_steps=1, save_strategy="no")
    anew.train(resume_from_checkpoint=True)
    assert anew.state.global_step == 1


def test_stock_takes_the_newest_folder_whatever_is_in_it(run: Path):
    (run / "checkpoint-11").mkdir()
    assert get_last_checkpoint(str(run)) == str(run / "checkpoint-11")
    assert last_complete(run) == run / "checkpoint-10"
