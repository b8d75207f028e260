"""The reference model: what makes TRL load one, and its state where `--sync_ref_model` lets it follow the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_grpo.trainers.state_file import FOLDER


class SyncedReference:
    """The reference model as a part of checkpoints, in which it is held if it changes.

    Args:
        model: the reference model; None where it is not synced.
        is_main: whether this process writes it.
    """

    state_file = f"{FOLDER}/reference_model.safetensors"

    def __init__(self, model: nn.Module | None, *, is_main: bool) -> None:
        self.model, self.is_main = model, is_main

    def state_dict(self) -> dict[str, Tensor]:
        """Return its parameters on the process that writes them."""
        if self.model is None or not self.is_main:
            return {}
        return {name: parameter.detach().cpu().contiguous() for name, parameter in self.model.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor], where: str) -> None:
        """Copy the parameters of a checkpoint's reference model.

        Raises:
            ValueError: this run syncs none, or has another model.
        """
        if self.model is None:
            raise ValueError(
                f"{where} was written with --sync_ref_model true, and its reference has been updated: resume with it"
            )
        live = dict(self.model.named_parameters())
        wrong = sorted(state.keys() ^ live.keys())
        wrong += sorted(name for name in state.keys() & live.keys() if state[name].shape != live[name].shape)
        if wrong:
            raise ValueError(
                f"{where} is the reference of another model: {len(wrong)} parameters do not fit "
                f"({', '.join(wrong[:2])})"
            )
        with torch.no_grad():
            for name, parameter in live.items():
                parameter.copy_(state[name])

    def check_missing(self, checkpoint: Path) -> None:
        """Check that no reference model is needed.

        Raises:
            ValueError: this run syncs one.
        """
        if self.model is not None:
            raise ValueError(
                f"{checkpoint / self.state_file} is missing: --sync_ref_model true needs the reference model of the "
                "run so far, and this checkpoint was written without it; resume with the flags of that run, or begin "
                "a new run from its weights"
            )


def arguments_with_reference(args: Any) -> Any:
    """Return a copy of the arguments with which TRL loads a reference model for the KL in the reward.

    TRL loads one, and syncs it, only if `beta`, the coefficient of the KL in the loss, is not 0.
    """
    with_reference = object.__new__(type(args))
    vars(with_reference).update(vars(args), beta=args.kl_reward_coef)  # `copy` would leave passwords out, as pickles do
    return with_reference


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
