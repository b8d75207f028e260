"""A reference model that follows the policy is part of a checkpoint: a resumed run has the same KL."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.trainers.test_resume import build, weights_differ
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.checkpoints import CheckpointParts, SavedPart, validate_checkpoint, write_record
from vlm_grpo.trainers.reference import SyncedReference, check_reference

FILE = "training_state/reference_model.safetensors"
SYNCED = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 5, "learning_rate": 1e-2}


@pytest.fixture(scope="module", params=["grpo", "rloo"])
def whole(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = build(request.param, tiny_model, tmp_path_factory.mktemp(request.param), **SYNCED)
    trainer.train()
    return trainer


def kl_of(trainer: Any) -> list[float]:
    return [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]


def checkpoint_of(trainer: Any, folder: Path) -> Path:
    shutil.copytree(Path(trainer.args.output_dir) / "checkpoint-3", folder / "checkpoint-3")
    return folder / "checkpoint-3"


def again(whole: Any, model: Path, folder: Path, **changes: Any) -> Any:
    kind = "rloo" if "RLOO" in type(whole).__name__ else "grpo"
    return build(kind, model, folder, **{**SYNCED, **changes})


def test_the_kl_goes_on_as_without_an_interruption(whole: Any, tiny_model: Path, tmp_path: Path):
    """The reference has moved at step 2, the checkpoint is of step 3."""
    checkpoint = checkpoint_of(whole, tmp_path)
    resumed = again(whole, tiny_model, tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert kl_of(resumed) == kl_of(whole) and len(kl_of(whole)) == 5 and kl_of(whole)[3] != 0
    assert weights_differ(resumed, whole) == 0
    pairs = zip(resumed.ref_model.parameters(), whole.ref_model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_run_that_syncs_none_does_not_go_on_with_it_nor_the_other_way(whole: Any, tiny_model: Path, tmp_path: Path):
    checkpoint = checkpoint_of(whole, tmp_path)
    with pytest.raises(
        ValueError, match="with --sync_ref_model true, and its reference has been updated: resume with it"
    ):
        again(whole, tiny_model, tmp_path, sync_ref_model=False).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / FILE).unlink()
    assert validate_checkpoint(checkpoint) == f"{FILE} is missing"
    with pytest.raises(ValueError, match=rf"{FILE} is missing: --sync_ref_model true needs"):
        again(whole, tiny_model, tmp_path).train(resume_from_checkpoint=str(written_without_it(checkpoint)))


def written_without_it(checkpoint: Path) -> Path:
    write_record(checkpoint)
    return checkpoint


def test_the_reference_of_another_model_is_an_error(whole: Any, tmp_path: Path):
    checkpoint = checkpoint_of(whole, tmp_path)
    with pytest.raises(ValueError, match=rf"{FILE} is the reference of another model: \d+ parameters do not fit"):
        parts_of(torch.nn.Linear(2, 3)).load(checkpoint)
    (checkpoint / FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=rf"{FILE}: expected a safetensors file .* it cannot be read"):
        parts_of(whole.ref_model).load(checkpoint)


def parts_of(model: torch.nn.Module) -> CheckpointParts:
    reference = SyncedReference(model, is_main=True)
    saved = SavedPart(reference, reference.state_file, reference.check_missing, is_weights=True)
    return CheckpointParts([saved], Ranks(Accelerator(cpu=True)), is_main=True)


def test_checkpoints_of_a_sharded_one_are_refused():
    args = SimpleNamespace(sync_ref_model=True, save_strategy="steps")
    with pytest.raises(ValueError, match="use DDP or ZeRO-2, leave --sync_ref_model out, or train without checkpoints"):
        check_reference(args, is_sharded=True)
    check_reference(args, is_sharded=False)
    check_reference(SimpleNamespace(sync_ref_model=True, save_strategy="no"), is_sharded=True)
    check_reference(SimpleNamespace(sync_ref_model=False, save_strategy="steps"), is_sharded=True)
