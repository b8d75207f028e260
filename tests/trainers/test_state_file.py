"""What a checkpoint holds comes back as it was, and no file of it runs code when a run is resumed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.training import picture
from tests.trainers.test_resume import build
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.rollouts.segment import CompletionSegment
from vlm_grpo.trainers.checkpoints import last_complete, resumable, validate_checkpoint, write_record
from vlm_grpo.trainers.resume import check_fit
from vlm_grpo.trainers.state_file import load_state, save_state

STATES = ("training_state/rollout_0.safetensors", "training_state/left_over_0.safetensors")


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the middle of a rollout, with what dynamic sampling keeps."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_model, folder, max_steps=1, save_steps=1)
    return folder / "checkpoint-1"


def train(model: Path, folder: Path, checkpoint: Path | None = None, **options: Any) -> Any:
    trainer = build("grpo", model, folder, num_iterations=2, dynamic_sampling=1, **{"max_steps": 2, **options})
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run" / "checkpoint-1")
    return tmp_path / "run" / "checkpoint-1"


def test_everything_comes_back_as_it_was(tmp_path: Path):
    half = torch.tensor([[0.1, float("nan")]], dtype=torch.bfloat16)
    later = CompletionSegment(
        [1, 2], {"token_type_ids": [0, 1]}, {"pixel_values": half}, [ImageRef(b"\x89PNG", "x.jsonl:1")], "<a>"
    )
    frames = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)[:, ::-1]
    value = {
        "plain": [None, True, 1, 0.1, float("inf"), "\ud800 é", {}],
        3: ("a", (), b""),
        "tensors": [half, torch.tensor(4), torch.zeros(0, 2, dtype=torch.long), torch.arange(6).view(2, 3).T],
        "records": [later, VideoRef(frames, "w", 2.0, None), VideoRef((ImageRef("a.png"),))],
    }
    save_state(tmp_path / "new" / "a.safetensors", value)
    back = load_state(tmp_path / "new" / "a.safetensors")
    assert list(back) == ["plain", 3, "tensors", "records"]
    assert back["plain"] == value["plain"] and back[3] == value[3] and type(back[3]) is tuple
    for one, other in zip(back["tensors"], value["tensors"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert one.dtype == other.dtype
    first, second, third = back["records"]
    assert (first.ids, first.per_token, first.refs, first.opening) == ([1, 2], later.per_token, later.refs, "<a>")
    assert first.visual["pixel_values"] is back["tensors"][0]
    assert np.array_equal(second.source, frames) and (second.where, second.fps) == ("w", 2.0)
    assert third == value["records"][2]


def test_an_image_is_one_object_again_so_that_it_is_processed_once(tmp_path: Path):
    image = picture(0)
    save_state(tmp_path / "a", [ImageRef(image, "one"), ImageRef(image, "other"), ImageRef(picture(1))])
    one, other, third = load_state(tmp_path / "a")
    assert one.source is other.source and one.key == other.key != third.key
    assert np.array_equal(np.asarray(one.source), np.asarray(image))


def test_an_object_that_json_does_not_know_is_named(tmp_path: Path):
    with pytest.raises(TypeError, match="cannot hold an object of type PosixPath"):
        save_state(tmp_path / "a", {"path": [tmp_path]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b'["a"]', b'{"dict": 3}', b'{"os.system": ["ls"]}', b'{"tensor": 7}'],
    ids=str,
)
def test_a_file_of_another_kind_is_an_error(content: bytes, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    if content.startswith((b"[", b'{"')):
        text = content if content.startswith(b"{") else b"["
        save_file({"content": torch.frombuffer(bytearray(text), dtype=torch.uint8)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: expected a safetensors file written with the checkpoint"):
        load_state(path)


@pytest.mark.parametrize("name", [*STATES, "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["torch.save", "pickle"])
def test_a_pickle_in_place_of_a_file_does_not_run(
    name: str, is_zip: bool, checkpoint: Path, tiny_model: Path, tmp_path: Path
):
    """Also with a record that fits it: then the file's reader refuses it."""
    content = Malicious(tmp_path / "marker")
    with (checkpoint / name).open("wb") as file:
        torch.save(content, file) if is_zip else pickle.dump(content, file)
    with pytest.raises(ValueError, match=rf"{name} (has \d+ bytes, \d+ were written|is cut off)"):
        train(tiny_model, checkpoint.parent, checkpoint)
    write_record(checkpoint)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=rf"{name} is cut off|Weights only load failed"):
        train(tiny_model, checkpoint.parent, checkpoint)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["zero_pp_rank_0_mp_rank_00_model_states.pt", "bf16_zero_pp_rank_1_optim_states.pt"])
def test_deepspeed_is_not_given_a_shard_that_runs_code(name: str, tmp_path: Path):
    """It unpickles whatever is there."""
    model = torch.nn.Linear(2, 3)
    (tmp_path / "latest").write_text("global_step1")
    (tmp_path / "global_step1").mkdir()
    shapes = [{key: parameter.shape for key, parameter in model.named_parameters()}]
    torch.save({"param_shapes": shapes}, tmp_path / "global_step1" / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    check_fit(model, tmp_path, is_deepspeed=True)
    path = tmp_path / "global_step1" / name
    torch.save({"param_shapes": shapes, "more": [Malicious(tmp_path / "marker")]}, path)
    with pytest.raises(ValueError, match=rf"{name} asks for posix\.mkdir, which could run code"):
        check_fit(model, tmp_path, is_deepspeed=True)
    torch.save(Malicious(tmp_path / "marker"), path, pickle_protocol=4)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a file of tensors"):
        check_fit(model, tmp_path, is_deepspeed=True)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["rollout_0.pt", "left_over_0.pt"])
def test_a_checkpoint_of_before_is_refused_and_not_written_over(
    name: str, checkpoint: Path, tiny_model: Path, tmp_path: Path
):
    (checkpoint / "training_state" / name).with_suffix(".safetensors").unlink()
    torch.save(Malicious(tmp_path / "marker"), checkpoint / name)
    said = rf"{name} is a pickle of an earlier version.* not read\. Begin a new run from the checkpoint's weights"
    assert last_complete(checkpoint.parent) is None
    with pytest.raises(ValueError, match=said):
        resumable(checkpoint.parent)
    for start in (str(checkpoint), True):
        with pytest.raises(ValueError, match=said):
            build("grpo", tiny_model, checkpoint.parent).train(resume_from_checkpoint=start)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", [*STATES, "scheduler.pt", "rng_state.pth", "optimizer.pt", "config.json"])
def test_a_missing_file_is_named(name: str, checkpoint: Path, tiny_model: Path):
    (checkpoint / name).unlink()
    expected = "no optimizer state" if name == "optimizer.pt" else f"{name} is missing"
    assert validate_checkpoint(checkpoint).startswith(expected)
    with pytest.raises(ValueError, match=f"checkpoint-1 is not a complete checkpoint: {expected}"):
        train(tiny_model, checkpoint.parent, checkpoint)


@pytest.mark.parametrize("name", [*STATES, "scheduler.pt", "config.json", "checkpoint_files.json"])
def test_a_file_that_is_cut_off_is_named(name: str, checkpoint: Path):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    assert validate_checkpoint(checkpoint) == f"{name} is cut off"


def test_a_configuration_may_be_edited_and_pickled_arguments_deleted(checkpoint: Path):
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " \n")
    (checkpoint / "training_args.bin").unlink()
    assert validate_checkpoint(checkpoint) is None


def test_without_a_record_what_every_trainer_writes_is_needed(checkpoint: Path):
    (checkpoint / "checkpoint_files.json").unlink()
    assert validate_checkpoint(checkpoint) == "checkpoint_files.json is missing"
    for name in STATES:
        (checkpoint / name).unlink()
    assert validate_checkpoint(checkpoint) is None  # as stock TRL writes it
    (checkpoint / "scheduler.pt").rename(checkpoint / "aside")
    assert validate_checkpoint(checkpoint) == "scheduler.pt is missing"
    (checkpoint / "rng_state.pth").unlink()
    assert validate_checkpoint(checkpoint) == "rng_state.pth is missing"


@pytest.mark.parametrize(("text", "kind"), [("[1]", "list"), ("3", "int"), ("null", "NoneType"), ('"a"', "str")])
def test_a_state_that_is_no_object_makes_it_incomplete(text: str, kind: str, checkpoint: Path):
    (checkpoint / "trainer_state.json").write_text(text)
    assert validate_checkpoint(checkpoint) == f"trainer_state.json must hold a JSON object, it holds {kind}"
    assert last_complete(checkpoint.parent) is None
