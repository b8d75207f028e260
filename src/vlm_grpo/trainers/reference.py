"""Saves and loads the synced reference model: with `--sync_ref_model` it follows the policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vlm_grpo.trainers.state_file import state_path

NAME = "reference_model"


@contextmanager
def loading_reference(args: Any, coefficient: float) -> Iterator[None]:
    """Make TRL load a reference model, which it does only if `args.beta` is not 0 when the trainer is built."""
    before = getattr(args, "beta", None)
    if not coefficient or before:
        yield
        return
    args.beta = coefficient
    try:
        yield
    finally:
        args.beta = before


def check_reference(args: Any, *, is_sharded: bool) -> None:
    """Check that a changing reference model can be saved: its parameters must not be sharded.

    Raises:
        ValueError: the reference could not be restored.
    """
    if args.sync_ref_model and is_sharded and args.save_strategy != "no":
        raise ValueError(
            "--sync_ref_model changes the reference model, which a checkpoint cannot hold under DeepSpeed ZeRO-3 or "
            "FSDP: use DDP or ZeRO-2, leave --sync_ref_model out, or train without checkpoints (--save_strategy no)"
        )


def save_reference(checkpoint: str | Path, reference: nn.Module) -> None:
    """Write the parameters of a synced reference model into a checkpoint; called on one process."""
    path = state_path(checkpoint, NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    parameters = {name: parameter.detach().cpu().contiguous() for name, parameter in reference.named_parameters()}
    save_file(parameters, partial, metadata={"format": "pt"})
    partial.replace(path)


def load_reference(checkpoint: str | Path, reference: nn.Module | None) -> None:
    """Copy the parameters of a checkpoint's reference model into that of a run; None where a run syncs none.

    Raises:
        ValueError: only one of both has a synced reference, or it is that of another model.
    """
    path = state_path(checkpoint, NAME)
    if path.is_file() and reference is None:
        raise ValueError(
            f"{checkpoint} was written with --sync_ref_model true, and its reference has been updated: resume with it"
        )
    if reference is None:
        return
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: --sync_ref_model true needs the reference model of the run so far, and this "
            "checkpoint was written without it; resume with the flags of that run, or begin a new run from its weights"
        )
    _copy(path, reference)


def _copy(path: Path, reference: nn.Module) -> None:
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}; resume from another checkpoint") from error
    live = dict(reference.named_parameters())
    wrong = sorted(name for name in saved.keys() ^ live.keys())
    wrong += sorted(name for name in saved.keys() & live.keys() if saved[name].shape != live[name].shape)
    if wrong:
        raise ValueError(
            f"{path} is the reference of another model: {len(wrong)} parameters do not fit ({', '.join(wrong[:2])})"
        )
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(saved[name])
