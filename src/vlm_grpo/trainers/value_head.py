"""Where PPO's values come from, as modules of the policy: a head on its last hidden states, or on a model of its own.

Both run within a forward of the policy: whatever trains, shards, packs and gathers the policy does so with them. What
is done with the values is `critic.py`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from vlm_grpo.algorithms.ppo import OWN
from vlm_grpo.families import FAMILIES
from vlm_grpo.model_utils import model_config, part_of
from vlm_grpo.shared_prefix.packed_logprobs import backbone

NAME = "value_head"


@dataclass
class ValuedOutput(FusedCausalLMOutput):
    """TRL's output of a forward, with the head's values of the positions that its backbone gave, (B, L) or (1, S)."""

    token_values: Tensor | None = None  # `values` is a method of every output


class ValueHead(nn.Module):
    """A linear map from a hidden state of the policy to a value, 0 in the beginning; it computes in full precision.

    It is a module of the policy, so that whatever trains, shards and gathers the policy's parameters does so with its
    own; but no state dict holds it: saved models stay plain ones, and it has a file of its own.
    """

    file = "value_head.safetensors"

    def __init__(self, size: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))
        self.is_alone = False  # whether its loss leaves the policy untouched
        self._is_wanted = False
        self._hidden: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states to (...) values."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)

    def state_dict(  # type: ignore[override]  # of its overloads the one in use
        self, *args: Any, destination: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Nothing, also of what is below."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, *args: Any) -> None:
        """Nothing, and nothing is missing."""

    def follow(self, model: nn.Module) -> None:
        """From now on forwards of the policy that score tokens have `token_values` in their output."""
        backbone(model).register_forward_hook(self.keep)  # behind the one that keeps the scored positions alone
        model.register_forward_pre_hook(self.begin, with_kwargs=True)
        model.register_forward_hook(self.end)

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a forward of the policy: is it one that scores tokens?"""
        self._is_wanted, self._hidden = bool(kwargs.get("fused_lm_head")), None

    def keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After the policy's backbone: its last hidden states."""
        if self._is_wanted:
            self._hidden = output.last_hidden_state.detach() if self.is_alone else output.last_hidden_state

    def end(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """After the forward: the values, as a part of the output. DDP follows no other way to a parameter."""
        if not self._is_wanted:
            return output
        hidden, self._hidden, self._is_wanted = self._hidden, None, False
        return ValuedOutput(**output, token_values=self(hidden))


class OwnValueModel(ValueHead):
    """The head on a second backbone, which sees what the policy's sees and is right behind it.

    The second one gets the very arguments of the first: packed rows, blank prompts, features of a frozen tower.
    """

    file = "value_model.safetensors"

    def __init__(self, size: int, like: Tensor, twin: nn.Module) -> None:
        super().__init__(size, like)
        self.backbone = twin
        self._given: tuple[tuple, dict] = (), {}
        self.register_load_state_dict_post_hook(_nothing_missing)

    def follow(self, model: nn.Module) -> None:
        # Before the hook that runs the policy's tower: if towers are trained, each makes features of its own.
        backbone(model).register_forward_pre_hook(self.take, with_kwargs=True, prepend=True)
        super().follow(model)

    def take(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the policy's backbone: what it is given."""
        if self._is_wanted:
            self._given = args, dict(kwargs)

    def keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After the policy's backbone, within its autocast: the own backbone's last hidden states."""
        if self._is_wanted:
            (args, kwargs), self._given = self._given, ((), {})
            self._hidden = self.backbone(*args, **kwargs).last_hidden_state


def _nothing_missing(head: nn.Module, found: Any) -> None:
    """torch asks the modules below the head for their weights, too, and notes them all as missing."""
    found.missing_keys[:] = [key for key in found.missing_keys if f"{NAME}." not in key]


def add_value_head(model: nn.Module, kind: str = "shared", gather: Any = None) -> ValueHead:
    """Give a policy a value model, one of `VALUE_MODELS`; its scoring forwards then have `token_values`.

    Args:
        model: the policy, before anything wraps it.
        kind: "shared" or "own".
        gather: a context in which a list of parameters that ZeRO-3 shards is whole; only "own" needs it.

    Raises:
        ValueError: "own", and the policy's weights are of a kind that cannot be trained.
    """
    size = model_config(model).get_text_config().hidden_size
    like = next(model.parameters())
    head = OwnValueModel(size, like, twin_of(model, gather)) if kind == OWN else ValueHead(size, like)
    head.follow(model)
    setattr(model, NAME, head)
    if isinstance(model, PreTrainedModel):  # DeepSpeed gathers what is saved from parameters, not from state dicts
        names = {f"{NAME}.{name}" for name, _ in head.named_parameters()}
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}
    return head


def policy_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a policy without those of its value model."""
    head = getattr(model, NAME, None)
    own = set() if head is None else {id(parameter) for parameter in head.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in own]


def is_value_parameter(name: str) -> bool:
    """Return whether a parameter of the policy, by its name, is the value model's."""
    return NAME in name.split(".")


def twin_of(model: nn.Module, gather: Any = None) -> nn.Module:
    """A copy of a policy's backbone as it is now; it trains what the policy trains.

    Beside an adapter it is the model below the adapter, and all of it is trained but a tower and a projector that the
    adapter leaves as they are. Under ZeRO-3 each parameter is whole only while it is copied.

    Raises:
        ValueError: the weights are quantized.
    """
    source = backbone(model)
    if not all(parameter.is_floating_point() for parameter in source.parameters()):
        raise ValueError(
            "--algorithm_options value_model own: the policy's weights are quantized, and a copy of them cannot be "
            "trained; use value_model shared, or load the policy unquantized"
        )
    copies: dict[int, Any] = {}
    twin = copy.deepcopy(source, copies)
    for parameter in source.parameters():
        if hasattr(parameter, "ds_id"):
            with gather([parameter]):
                copies[id(parameter)].data = parameter.data.clone()
            shard: Callable[[list[nn.Parameter]], None] = getattr(parameter, "convert_to_zero_parameters")  # noqa: B009 - DeepSpeed's
            shard([copies[id(parameter)]])
    if hasattr(model, "get_base_model"):
        _remove_adapter(twin)
        _train_as(twin, model)
    return twin


def _remove_adapter(module: nn.Module) -> None:
    """Put the layers back that an adapter has replaced."""
    for name, child in module.named_children():
        base_of: Callable[[], nn.Module] | None = getattr(child, "get_base_layer", None)
        bare = getattr(child, "original_module", child) if base_of is None else base_of()
        if bare is not child:
            setattr(module, name, bare)
        _remove_adapter(bare)


def _train_as(twin: nn.Module, model: Any) -> None:
    """Train the twin's parameters, without a tower or projector that an adapted policy keeps as it is."""
    family, prefix = FAMILIES.get(model.config.model_type), model.get_base_model().base_model_prefix
    frozen = {"vision tower", "projector"} if family is not None else set()
    if family is not None:
        frozen -= {part_of(name, family) for name, each in model.named_parameters() if each.requires_grad}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(family is None or part_of(f"{prefix}.{name}", family) not in frozen)


def load_head(head: ValueHead, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights of a checkpoint into the head; under ZeRO-3 they are only compared, DeepSpeed's own files give them.

    Args:
        head: of this run.
        state: names and weights in the head's file.
        where: the file, for errors.

    Raises:
        ValueError: they are of another size.
    """
    live = dict(head.named_parameters())
    for name in sorted(live.keys() | state.keys()):
        here = tuple(getattr(live[name], "ds_shape", live[name].shape)) if name in live else None
        shape = tuple(state[name].shape) if name in state else None
        if shape != here:
            raise ValueError(f"{where}: {name} is {shape}, this model's is {here}")
    for name, parameter in live.items():
        if not hasattr(parameter, "ds_shape"):
            parameter.data.copy_(state[name])


def missing_head_message(head: ValueHead, folder: Path) -> str:
    """Return of which kind of run a checkpoint is that lacks the head's file."""
    kinds = {"shared": ValueHead.file, "own": OwnValueModel.file}
    other = next((kind for kind, file in kinds.items() if (folder / file).is_file()), None)
    if other is None:
        return (
            f"{folder} has no {head.file}: it was written by an algorithm without a value model; begin anew with "
            f"--model_name_or_path {folder}"
        )
    return (
        f"{folder} has no {head.file} but {kinds[other]}: resume with "
        f"""--algorithm_options '{{"value_model": "{other}"}}', as it was begun"""
    )
