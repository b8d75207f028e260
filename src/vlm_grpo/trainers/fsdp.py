"""Generation with a sharded model: every process holds all parameters of the policy while it generates.

TRL 1.16 generates with the shards as they are: each layer is gathered again for each token, and processes whose
completions differ in length, or of which one has no image, wait for gathers that the others never join. TRL gathers
the parameters of DeepSpeed ZeRO-3 for generation, those of a value model too; this module does so for FSDP2, and for
the policy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation
from trl.models.utils import add_hooks, remove_hooks

from vlm_grpo.trainers.value_head import policy_parameters


class FullParamsBackend(DistributedBackend):
    """TRL's abstraction over DeepSpeed and FSDP, which also gathers the parameters of FSDP2."""

    @contextmanager
    def summon_full_params(self, module: nn.Module, **options: Any) -> Iterator[None]:
        gathered = full_params(module) if self.fsdp_version == 2 else super().summon_full_params(module, **options)
        with gathered:
            yield


@contextmanager
def full_params(model: nn.Module) -> Iterator[None]:
    """Hold all parameters of an FSDP2 model on every process, in its compute precision; then shard them again.

    All processes enter together. Inside, any of them may run any modules any number of times.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units[:1]:
        unit._get_fsdp_state()._lazy_init()  # gathering before the first forward needs the root's streams
    frees_after_forward = [_frees_after_forward(unit) for unit in units]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit, frees in zip(units, frees_after_forward, strict=True):
            unit.reshard()
            unit.set_reshard_after_forward(frees, recurse=False)


def _frees_after_forward(unit: FSDPModule) -> bool:
    """Return what torch has a setter for, but no getter."""
    return any(group._reshard_after_forward for group in unit._get_fsdp_state()._fsdp_param_groups)


@contextmanager
def gathered_policy(wrapped: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Hold the policy's parameters that ZeRO-3 shards on every process; those of a value model stay as they are.

    DeepSpeed's hooks, which gather the parameters of each module, are off inside.
    """
    policy = policy_parameters(accelerator.unwrap_model(wrapped))
    with FullParamsBackend(accelerator).gather_params(policy):
        remove_hooks(wrapped)
        try:
            yield
        finally:
            add_hooks(wrapped)


@contextmanager
def model_for_generation(
    wrapped: nn.Module, accelerator: Accelerator, *, gather_deepspeed3_params: bool = True, **options: Any
) -> Iterator[nn.Module]:
    """Yield the model without its wrapper and gradients, with all parameters on this process, however they are sharded.

    Args:
        wrapped: the model as the accelerator wrapped it.
        accelerator: of the run.
        gather_deepspeed3_params: otherwise what ZeRO-3 shards is gathered module by module.
        options: of TRL's `unwrap_model_for_generation`.
    """
    backend = FullParamsBackend(accelerator)
    is_gathered = gather_deepspeed3_params and backend.is_zero3
    policy = gathered_policy(wrapped, accelerator) if is_gathered else nullcontext()
    full = backend.summon_full_params(wrapped, recurse=False)
    unwrapped = unwrap_model_for_generation(wrapped, accelerator, gather_deepspeed3_params=False, **options)
    with unwrapped as model, policy, torch.no_grad(), full:
        yield model
