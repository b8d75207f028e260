"""The adapter of a policy as files, for vLLM servers that have the model below it: a small part of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from vlm_grpo.families import FAMILIES
from vlm_grpo.rollouts.engines.engine import NamedTensor
from vlm_grpo.rollouts.engines.policy_weights import PolicyWeights
from vlm_grpo.rollouts.engines.weight_files import WholeFolder, copied

ADAPTER_PREFIX = "adapter-"  # of the names of weights, and so of their versions on a server
ADVICE = "use --rollout_transfer folder, which sends the merged weights"


def check_adapter(model: nn.Module) -> LoraConfig:
    """Return the configuration of a policy's adapter.

    Raises:
        ValueError: something else is trained too, or vLLM knows no such adapter.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"--rollout_transfer adapter: the policy has no adapter; {ADVICE}")
    config = model.peft_config[model.active_adapter]
    if not isinstance(config, LoraConfig) or config.use_dora or config.bias != "none":
        raise ValueError(f"--rollout_transfer adapter: vLLM knows plain LoRA alone, without DoRA and biases; {ADVICE}")
    prefix = model.prefix
    family = FAMILIES.get(model.config.model_type)
    language = "language_model" if family is None else family.language_model
    has_images = getattr(model.config, "vision_config", None) is not None
    wrong = [
        name
        for name, _ in model.named_parameters()
        if prefix in name and ("lora_embedding" in name or (has_images and f".{language}." not in name))
    ]
    if wrong:
        raise ValueError(
            f"--rollout_transfer adapter: {wrong[0]} is not in a linear layer of the language model; with adapters in "
            f"the vision tower vLLM's log-probabilities were off by 0.1 to 0.2. {ADVICE}"
        )
    others = [name for name, each in model.named_parameters() if each.requires_grad and prefix not in name]
    if others:
        raise ValueError(f"--rollout_transfer adapter: {others[0]} is trained beside the adapter; {ADVICE}")
    return config


class AdapterWeights:
    """Iterates over the tensors of a policy's adapter, whole, under the names of `adapter_model.safetensors`.

    Args:
        policy: the weights of the policy, of which these are a part.
    """

    def __init__(self, policy: PolicyWeights) -> None:
        self.policy = policy

    def __iter__(self) -> Iterator[NamedTensor]:
        model, backend = self.policy.model, self.policy.backend
        assert isinstance(model, PeftModel)
        with backend.summon_full_params(model, writeback=False), torch.no_grad():
            for name, parameter in model.named_parameters():
                if model.prefix not in name or self.policy.is_left_out(name):
                    continue
                with backend.gather_params([parameter]):
                    tensor = parameter.detach()
                    short = name.replace(f".{model.active_adapter}.", ".").replace("_checkpoint_wrapped_module.", "")
                    yield short, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class AdapterFiles(WholeFolder):
    """Folders with an adapter as PEFT saves it.

    Args:
        folder: holds them; nothing else should be in it.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, ADAPTER_PREFIX)
        self.config: LoraConfig | None = None

    def tensors(self, weights: Iterable[NamedTensor]) -> Iterable[NamedTensor]:
        """Return those of the policy's weights that are written.

        Raises:
            ValueError: they are not those of an adapter alone.
        """
        if not isinstance(weights, PolicyWeights):
            raise ValueError(f"--rollout_transfer adapter sends the adapter of a policy, got {type(weights).__name__}")
        self.config = check_adapter(weights.model)
        return AdapterWeights(weights)

    def fill(self, folder: Path, tensors: Iterable[NamedTensor]) -> None:
        """Write an adapter into an empty folder."""
        assert self.config is not None  # `tensors` comes first
        save_file({name: copied(tensor) for name, tensor in tensors}, folder / "adapter_model.safetensors")
        self.config.save_pretrained(str(folder))
