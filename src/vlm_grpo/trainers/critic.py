"""PPO's value model (arXiv:1707.06347) inside a training: its values, loss, learning rate and file.

It predicts, at each token, the expected return of the rest of the completion. Its modules are in `value_head.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_grpo.algorithms.ppo import OWN, SHARED
from vlm_grpo.model_utils import method_of
from vlm_grpo.records import required
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.value_head import (
    OwnValueModel,
    ValuedOutput,
    ValueHead,
    add_value_head,
    load_head,
    missing_head_message,
)

LEARNING_RATES = {SHARED: 1e-4, OWN: 1e-5}


class ValueModel:
    """PPO's value model: its head in the policy, the values of passes, its loss, its groups of parameters, its file.

    Args:
        policy: gets the head, before anything wraps or shards it.
        kind: SHARED or OWN.
        args: of the training.
        ranks: collectives of the run.
        gather_params: gathers parameters that ZeRO-3 shards.
    """

    def __init__(
        self,
        policy: nn.Module,
        kind: str,
        args: Any,
        ranks: Ranks,
        gather_params: Callable[..., AbstractContextManager[object]],
    ) -> None:
        self.kind, self.args, self.ranks = kind, args, ranks
        self.gather_params = gather_params
        self.policy = policy
        self.head: ValueHead = add_value_head(policy, self.kind, gather_params)
        self._values: list[Tensor] = []  # of the passes since it was emptied, each (B, C)
        if isinstance(self.head, OwnValueModel):
            self._save_activation_memory(self.head)

    def _save_activation_memory(self, own: OwnValueModel) -> None:
        """Checkpoint its activations, too: an adapter's model hands that on to the model below it alone."""
        if self.args.gradient_checkpointing and hasattr(self.policy, "get_base_model"):
            options = dict(self.args.gradient_checkpointing_kwargs or {})
            ways = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
            method_of(own.backbone, "activation_checkpointing_enable")(options or None, **ways)

    @contextmanager
    def recording(self, policy: nn.Module, logits_to_keep: int) -> Iterator[None]:
        """Collect the values of TRL's own pass, as its forwards give them; the policy comes without its wrapper."""
        found: list[Tensor] = []
        hook = policy.register_forward_hook(
            lambda module, args, output: (
                found.append(required(output.token_values, "the values of a pass"))
                if isinstance(output, ValuedOutput)
                else None
            )
        )
        try:
            yield
        finally:
            hook.remove()
        self.collect(torch.cat(found)[:, -logits_to_keep - 1 : -1])

    def collect(self, values: Tensor) -> None:
        """Take the (B, C) values of a pass."""
        self._values.append(values)

    def clear(self) -> None:
        """Forget the values of earlier passes."""
        self._values.clear()

    @property
    def first(self) -> Tensor:
        """The (B, C) values of the first pass since `clear`."""
        return self._values[0]

    @property
    def last(self) -> Tensor:
        """The (B, C) values of the last pass."""
        return self._values[-1]

    def take(self) -> Tensor:
        """Return the (B, C) values of the last pass, and forget them."""
        return self._values.pop()

    def is_warming_up(self, step: int) -> bool:
        """Return whether the policy stands still at an optimizer step; the head then leaves it untouched."""
        self.head.is_alone = step < self.args.value_warmup_steps
        return self.head.is_alone

    def add_param_groups(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the model's parameters into groups of their own; the head is the last."""
        own = {id(each) for each in self.head.parameters()}
        linear = [self.head.weight, self.head.bias]
        given = self.args.value_learning_rate
        rate = LEARNING_RATES[self.kind] if given is None else given
        for group in list(optimizer.param_groups):
            moved = [each for each in group["params"] if id(each) in own - {id(one) for one in linear}]
            group["params"] = [each for each in group["params"] if id(each) not in own]
            if moved:
                optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": group["weight_decay"]})
        optimizer.add_param_group({"params": linear, "lr": rate, "weight_decay": 0.0})

    @property
    def state_file(self) -> str:
        """Its file in a checkpoint."""
        return self.head.file

    def state_dict(self) -> dict[str, Tensor]:
        """Return its weights on the process that writes them; every process takes part."""
        held = {}
        for name, parameter in self.head.named_parameters():
            with self.gather_params([parameter]):
                if self.args.should_save:
                    held[name] = parameter.detach().cpu().clone()
        return held

    def load_state_dict(self, state: Mapping[str, Tensor], where: str) -> None:
        """Give the model its weights of a checkpoint back.

        Raises:
            ValueError: they are those of another model.
        """
        load_head(self.head, state, where)

    def check_missing(self, checkpoint: Path) -> None:
        """Refuse a checkpoint without its file.

        Raises:
            ValueError: says of which kind of run the checkpoint is.
        """
        raise ValueError(missing_head_message(self.head, checkpoint))


def check_value_model(trainer: Any) -> None:
    """Check that a run can train a value model.

    Raises:
        ValueError: it cannot.
    """
    if trainer.is_fsdp_enabled:
        raise ValueError(
            f"--algorithm {trainer.args.algorithm} does not go with FSDP, which would not shard its value head; use "
            "DeepSpeed (configs/accelerate/zero3.yaml)"
        )
    adapters = getattr(trainer.model, "peft_config", {}).values()
    if trainer.is_deepspeed_enabled and any(getattr(adapter, "bias", "none") == "all" for adapter in adapters):
        raise ValueError(
            "an adapter with bias='all' would be saved with the biases of the value head, which DeepSpeed gathers with "
            "the policy's; use bias='lora_only' or 'none'"
        )
    if trainer.optimizer is not None:
        raise ValueError("an optimizer of your own does not train the value head; leave `optimizers` out")
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and "optimizer" in plugin.deepspeed_config:
        raise ValueError(
            "an optimizer in the DeepSpeed file gives the value head no learning rate of its own; leave that "
            "section out and use --optim and --learning_rate"
        )
