"""What a checkpoint holds beside weights and optimizer, and whether it is complete.

The trainer's parts are saved and restored by `CheckpointParts`. Each checkpoint has a record of its files, so that a
missing or truncated file is found before anything is loaded. Nothing of a checkpoint is unpickled here.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlm_grpo.io import write_whole
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.resume import FULL_WEIGHTS
from vlm_grpo.trainers.state_file import FOLDER, load_state, load_weights, save_state, save_weights

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
RECORD = "checkpoint_files.json"
RECORDED = (".safetensors", ".pt", ".pth", ".bin", ".distcp", ".json")
NOT_NEEDED = ("training_args.bin", "trainer_state.json", RECORD)  # trainer_state.json is looked at by itself
PICKLES = ("rollout_*.pt", "left_over_*.pt")
SINGLE_WEIGHTS = (*(name for name in FULL_WEIGHTS if name not in INDEXES), "adapter_model.safetensors")


class Stateful(Protocol):
    """A part of the trainer that has a state."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what a checkpoint must hold; every process takes part, and an empty state writes no file."""

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Restore what `state_dict` returned; `where` names the file in errors."""


@dataclass(frozen=True)
class SavedPart:
    """A part and its file.

    Attributes:
        part: of the trainer.
        file: path in a checkpoint, JSON or safetensors. With `{rank}` in it, each process has a file of its own.
        check_missing: called with a checkpoint that lacks the file; raises where it cannot be resumed from.
        is_weights: whether the state is named tensors, and the file one that other tools read.
    """

    part: Stateful
    file: str
    check_missing: Callable[[Path], None] | None = None
    is_weights: bool = False

    def path(self, checkpoint: str | Path, rank: int) -> Path:
        """Return the path of the file of a process."""
        return Path(checkpoint) / self.file.format(rank=rank)


class CheckpointParts:
    """Saves, verifies and restores the state of the trainer's parts.

    Args:
        parts: in the order in which they are saved and restored.
        ranks: of the run.
        is_main: whether this process writes the files that are not of one process.
    """

    def __init__(self, parts: Sequence[SavedPart], ranks: Ranks, *, is_main: bool) -> None:
        self.parts, self.ranks, self.is_main = parts, ranks, is_main

    def save(self, checkpoint: str | Path) -> None:
        """Write the state of every part, and the record of all files of a resume: call it when the others are there."""
        for saved in self.parts:
            state = saved.part.state_dict()
            if state and (self.is_main or "{rank}" in saved.file):
                save = save_weights if saved.is_weights else save_state
                save(saved.path(checkpoint, self.ranks.index), state)
        # The record, and trainer_state.json after it, say that every process is done.
        self.ranks.accelerator.wait_for_everyone()
        if self.is_main:
            write_record(checkpoint)

    def verify(self, checkpoint: str | Path) -> None:
        """Check that a run can be resumed from a checkpoint.

        Raises:
            ValueError: says what is missing or broken.
        """
        check_complete(checkpoint)
        for saved in self.parts:
            if saved.check_missing is not None and not saved.path(checkpoint, self.ranks.index).is_file():
                saved.check_missing(Path(checkpoint))

    def load(self, checkpoint: str | Path) -> None:
        """Restore the state of every part that has a file in a checkpoint.

        Raises:
            ValueError: a file is broken, or is of another kind of run.
        """
        for saved in self.parts:
            path = saved.path(checkpoint, self.ranks.index)
            if path.is_file():
                state = load_weights(path) if saved.is_weights else load_state(path)
                saved.part.load_state_dict(state, str(path))


def last_complete(folder: str | Path) -> Path | None:
    """Return the newest complete checkpoint of an output folder; broken newer ones are named in a warning."""
    checkpoints = [
        (int(match[1]), path) for path in Path(folder).glob("checkpoint-*") if (match := NAME.fullmatch(path.name))
    ]
    for _, path in sorted(checkpoints, reverse=True):
        problem = validate_checkpoint(path)
        if problem is None:
            return path
        logger.warning("%s is not complete and is skipped: %s", path, problem)
    return None


def resumable(folder: str | Path) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint true` stands for; None when there is none.

    Raises:
        ValueError: all checkpoints are from a version that stored pickles; a new start would overwrite them.
    """
    newest = last_complete(folder)
    old = [path for path in Path(folder).glob("checkpoint-*") if newest is None and _pickles(path)]
    if old:
        raise ValueError(f"{old[0]}: {_old_format(_pickles(old[0])[0], old[0])}")
    return newest


def check_complete(checkpoint: str | Path) -> None:
    """Check that a run can be resumed from a checkpoint.

    Raises:
        ValueError: says what is missing or broken.
    """
    problem = validate_checkpoint(checkpoint)
    if problem is not None:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: {problem}; resume from another one")


def write_record(checkpoint: str | Path) -> None:
    """Record the names and sizes of the files that a resume needs; called when every process has written its own."""
    folder = Path(checkpoint)
    files = sorted(path for path in folder.rglob("*") if path.suffix in RECORDED and path.name not in NOT_NEEDED)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files if path.is_file()}
    write_whole(folder / RECORD, json.dumps(sizes, indent=2) + "\n")


def validate_checkpoint(checkpoint: str | Path) -> str | None:
    """Return what is missing or broken in a checkpoint; None when a run can be resumed from it."""
    folder = Path(checkpoint)
    state = folder / "trainer_state.json"  # written last
    if not state.is_file():
        return "no trainer_state.json"
    problem = _validate_json_object(state)
    if problem is not None:
        return problem
    pickles = _pickles(folder)
    if pickles:
        return _old_format(pickles[0], folder)
    names = [*(path.name for path in folder.glob("*.pt")), *(path.name for path in folder.glob("*.pth"))]
    names += [path.relative_to(folder).as_posix() for path in folder.glob(f"{FOLDER}/*.safetensors")]
    broken = [name for name in names if not _is_whole(folder / name)]
    if broken:
        return f"{sorted(broken)[0]} is cut off"
    if not (folder / "latest").is_file() and not any(folder.glob("optimizer*")):
        return "no optimizer state, which --save_only_model leaves out"
    return _validate_weights(folder) or _validate_record(folder)


def _validate_json_object(path: Path) -> str | None:
    """Return what is wrong with a file that must hold a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return f"{path.name} is cut off"
    if isinstance(content, dict):
        return None
    return f"{path.name} must hold a JSON object, it holds {type(content).__name__}"


def _pickles(folder: Path) -> list[str]:
    return sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))


def _old_format(name: str, folder: Path) -> str:
    return (
        f"{name} is a pickle of an earlier version of this package; reading it could run code, so it is not read. "
        f"Begin a new run from the checkpoint's weights, without its rollout (--model_name_or_path {folder} and "
        "another --output_dir), or train anew"
    )


def _validate_record(folder: Path) -> str | None:
    record = folder / RECORD
    if not record.is_file():
        return _validate_without_record(folder)
    problem = _validate_json_object(record)
    if problem is not None:
        return problem
    for name, size in json.loads(record.read_text(encoding="utf-8")).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.suffix == ".json":  # people edit configurations
            problem = _validate_json_object(path)
        elif path.stat().st_size != size:
            problem = f"{name} has {path.stat().st_size} bytes, {size} were written"
        if problem is not None:
            return problem
    return None


def _validate_without_record(folder: Path) -> str | None:
    """Return which of every Trainer's files is missing; this package writes a record with each rollout it saves."""
    if any(folder.glob(f"{FOLDER}/rollout_*")):
        return f"{RECORD} is missing"
    if not any(folder.glob("rng_state*.pth")):
        return "rng_state.pth is missing"
    if not (folder / "scheduler.pt").is_file() and not (folder / "latest").is_file():
        return "scheduler.pt is missing"
    return None


def _validate_weights(folder: Path) -> str | None:
    if (folder / "latest").is_file():  # DeepSpeed's own layout
        step = folder / (folder / "latest").read_text(encoding="utf-8").strip()
        files = list(step.glob("*.pt"))
        broken = [path.name for path in files if not zipfile.is_zipfile(path)]
        return f"{broken[0]} is cut off" if broken else None if files else f"{step.name} holds no files"
    if any(folder.glob("pytorch_model_fsdp*")):
        shards = [path for path in folder.glob("*_0") if path.is_dir()]
        unfinished = [path.name for path in shards if not (path / ".metadata").is_file()]  # written after the shards
        return f"{unfinished[0]} is not complete" if unfinished else None
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is not None:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is cut off"
    else:
        names = [name for name in SINGLE_WEIGHTS if (folder / name).is_file()]
    if not names:
        return "no weights"
    missing = [name for name in names if not (folder / name).is_file()]
    cut = [name for name in names if name not in missing and not _is_whole(folder / name)]
    return f"{missing[0]} is missing" if missing else f"{cut[0]} is cut off" if cut else None


def _is_whole(path: Path) -> bool:
    """Return whether a file of weights is as long as its header says; nothing but the header is read."""
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return path.stat().st_size == 8 + length + max(ends, default=0)
