"""Generation with an FSDP2-sharded model: every process holds all parameters while it generates.

TRL 1.16 generates with the shards as they are: each layer is gathered again for each token, and processes whose
completions differ in length, or of which one has no image, wait for gathers that the others never join. TRL gathers
the parameters of DeepSpeed ZeRO-3 for generation; this module does so for FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation


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
    groups = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
    after_forward = [group.post_forward_mesh_info for group in groups]  # torch has a setter for it, but no getter
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
        for group, mesh in zip(groups, after_forward, strict=True):
            group.post_forward_mesh_info = mesh


@contextmanager
def model_for_generation(wrapped: nn.Module, accelerator: Any, **options: Any) -> Iterator[nn.Module]:
    """Yield the model without its wrapper and gradients, with all parameters on this process, however they are sharded.

    Args:
        wrapped: the model as the accelerator wrapped it.
        accelerator: of the run.
        options: of TRL's `unwrap_model_for_generation`.
    """
    full = FullParamsBackend(accelerator).summon_full_params(wrapped, recurse=False)
    with unwrap_model_for_generation(wrapped, accelerator, **options) as model, torch.no_grad(), full:
        yield model
