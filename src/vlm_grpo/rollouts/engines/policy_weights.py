"""The weights of a policy for an engine with a copy of its own: whole tensors, as checkpoint files have them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trl.distributed import DistributedBackend

from vlm_grpo.rollouts.engines.checkpoint_form import checkpoint_tensors
from vlm_grpo.rollouts.engines.engine import NamedTensor

WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "modules_to_save.default.")


class PolicyWeights:
    """Iterates over the tensors of the policy's checkpoint, one whole tensor at a time, however they are sharded.

    An adapter is merged into the weights below it for the moment in which they are read; the policy's own stay as they
    are to the bit (merging and unmerging in bfloat16 would change them a little each time). Gathering is collective:
    every process iterates.

    Args:
        model: the policy, without its wrapper.
        backend: gathers the parameters of DeepSpeed and FSDP.
        is_left_out: whether a parameter is none of the policy's, such as a value head's.
    """

    def __init__(
        self, model: nn.Module, backend: DistributedBackend, is_left_out: Callable[[str], bool] = lambda name: False
    ) -> None:
        self.model, self.backend, self.is_left_out = model, backend, is_left_out

    def __iter__(self) -> Iterator[NamedTensor]:
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        buffers = self._persistent_buffers()
        names = [name for name, _ in self.model.named_parameters() if not self._is_skipped(name)]
        live_names = [checkpoint_name(name) for name in (*names, *buffers)]
        yield from checkpoint_tensors(base, live_names, self._live(buffers))

    def _live(self, buffers: Mapping[str, Tensor]) -> Iterator[NamedTensor]:
        """Yield tensors as the model has them, each valid until the next."""
        modules = dict(self.model.named_modules())
        adapted = {name for name, module in modules.items() if isinstance(module, BaseTunerLayer)}
        with self.backend.summon_full_params(self.model, writeback=False), torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if self._is_skipped(name):
                    continue
                owner, _, inside = name.partition(".base_layer.")
                layer = modules[owner] if inside and owner in adapted else None
                with self.backend.gather_params([parameter] if layer is None else list(layer.parameters())):
                    tensor = parameter.detach() if layer is None else merged_parameter(layer, parameter)
                    yield checkpoint_name(name), tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, buffer in buffers.items():
                yield checkpoint_name(name), buffer.full_tensor() if isinstance(buffer, DTensor) else buffer

    def _persistent_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that a checkpoint has, such as the bias of a router."""
        saved = self.model.state_dict().keys()
        return {
            name: buffer for name, buffer in self.model.named_buffers() if name in saved and not self._is_skipped(name)
        }

    def _is_skipped(self, name: str) -> bool:
        is_adapters = isinstance(self.model, PeftModel) and self.model.prefix in name
        return is_adapters or "original_module" in name or self.is_left_out(name)


def checkpoint_name(name: str) -> str:
    """Return a parameter's name without what wrappers and adapters add to it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def merged_parameter(layer: nn.Module, parameter: nn.Parameter) -> Tensor:
    """Return a parameter below adapters with their part added; the layer stays as it is."""
    place = next(number for number, each in enumerate(layer.parameters()) if each is parameter)
    merged = copy.deepcopy(layer)
    for module in merged.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return list(merged.parameters())[place].data
