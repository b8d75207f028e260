"""Writes checkpoints and models without losing earlier ones: a full disk or a kill costs only the newest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from vlm_grpo.trainers.checkpoints import last_complete

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch reports a full disk as a RuntimeError
WEIGHT_FILES = ("model*.safetensors*", "pytorch_model*.bin*", "adapter_model*")
PARTIAL = "model.partial"  # folder in which a model is written, in its own
OPTIMIZER_BYTES = 8  # two moments in 32 bits for each trained parameter


class SavingError(RuntimeError):
    """A checkpoint or a model could not be written; what was written before is whole."""


@contextmanager
def writing_checkpoint(folder: Path, *, model: nn.Module, is_main: bool, wait: Callable[[], None]) -> Iterator[None]:
    """Let a checkpoint be written into an empty folder; an existing one is deleted only after success.

    Otherwise a folder that is overwritten could hold files of two runs, and look complete.

    Args:
        folder: of the checkpoint.
        model: whose size is named in the error when there is no earlier checkpoint to go by.
        is_main: whether this process deletes and renames; all of them wait for it.
        wait: returns when every process has called it.

    Raises:
        SavingError: writing failed, such as on a full disk.
    """
    backup = folder.with_name(f"replaced-{folder.name}")  # not checkpoint-*: neither resumed from nor rotated away
    if is_main:
        _back_up(folder, backup)
    wait()
    try:
        yield
    except WRITE_ERRORS as error:
        if is_main and backup.exists():
            shutil.rmtree(folder, ignore_errors=True)
            backup.rename(folder)
        raise SavingError(_message(folder, folder.parent, model, error)) from error
    if is_main:
        shutil.rmtree(backup, ignore_errors=True)


def _back_up(folder: Path, backup: Path) -> None:
    """Empty a checkpoint's folder: an incomplete one is deleted, any other is kept until the new one is complete."""
    if (folder / "trainer_state.json").is_file():
        shutil.rmtree(backup, ignore_errors=True)
        folder.rename(backup)
    elif folder.exists():
        shutil.rmtree(folder)


@contextmanager
def writing_model(folder: Path, *, model: nn.Module, is_main: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """Yield a folder to write a model into; its files replace those of `folder` once all of them are complete.

    Raises:
        SavingError: writing failed, such as on a full disk; the files in `folder` are as they were.
    """
    partial = folder / PARTIAL
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
    wait()
    try:
        yield partial
        wait()
        if is_main and partial.is_dir():
            _move_files(partial, folder)
    except WRITE_ERRORS as error:
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise SavingError(_message(folder, folder, model, error)) from error
    wait()


def _move_files(source: Path, target: Path) -> None:
    """Move all files of a folder into another, and delete older weights there."""
    names = {path.name for path in source.iterdir()}
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        (source / name).replace(target / name)
    source.rmdir()
    for path in (path for pattern in WEIGHT_FILES for path in target.glob(pattern)):
        if path.name not in names:
            path.unlink()


def _message(what: Path, output: Path, model: nn.Module, error: Exception) -> str:
    earlier, free = last_complete(output), shutil.disk_usage(output).free
    needed = expected_bytes(model) if earlier is None else folder_bytes(earlier)
    known = "no earlier checkpoint is there" if earlier is None else f"{earlier.name} and what came before are whole"
    return (
        f"{what} could not be written: {str(error).splitlines()[0]}\n"
        f"It takes about {readable_bytes(needed)}, {readable_bytes(free)} are free on its disk; {known}. "
        "Make room (or raise the quota, or write elsewhere with --output_dir), then run the same command with "
        "--resume_from_checkpoint true"
    )


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def expected_bytes(model: nn.Module) -> int:
    """Return about how many bytes a checkpoint takes: all weights, or the adapter's alone, and Adam's state."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    saved = trained if hasattr(model, "peft_config") else parameters
    counts = [(_count(parameter), parameter.element_size()) for parameter in saved]
    return sum(count * width for count, width in counts) + OPTIMIZER_BYTES * sum(_count(p) for p in trained)


def _count(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor in its place


def readable_bytes(count: float) -> str:
    """Return a readable number of bytes: 512 B, 1.5 MB."""
    units = ["GB", "MB", "KB", "B"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{count:.0f} B" if units[-1] == "B" else f"{count:.1f} {units[-1]}"
