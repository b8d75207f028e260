"""PPO's value model (arXiv:1707.06347): a head on the policy's last hidden states, its loss, learning rate and file.

The head sees the state before each token and says what the completion will still earn. It shares the policy's forward:
no second model is kept, and no pass is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.values import explained_variance, token_rewards, whitened
from vlm_grpo.trainers.hotpath.scores import backbone
from vlm_grpo.trainers.loss import AVERAGES

NAME = "value_head"
FILE = f"{NAME}.safetensors"
LEARNING_RATE = 1e-4


@dataclass
class ValuedOutput(FusedCausalLMOutput):
    """TRL's output of a forward, with the head's values of the positions that its backbone gave, (B, L) or (1, S)."""

    token_values: Tensor | None = None  # `values` is a method of every output


class ValueHead(nn.Module):
    """A linear map from a hidden state to a value, 0 in the beginning; it computes in full precision.

    It is a module of the policy, so that whatever trains, shards and gathers the policy's parameters does so with its
    own; but no state dict holds it: saved models stay plain ones, and it has a file of its own.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))
        self.is_alone = False  # whether its loss leaves the policy untouched
        self._is_wanted = False
        self._hidden: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states to (...) values."""
        given = hidden.detach() if self.is_alone else hidden
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(given.float(), self.weight.float(), self.bias.float()).squeeze(-1)

    def _save_to_state_dict(self, *args: Any) -> None:
        """Nothing."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Nothing, and nothing is missing."""

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a forward of the policy: is it one that scores tokens?"""
        self._is_wanted, self._hidden = bool(kwargs.get("fused_lm_head")), None

    def keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After the backbone: its last hidden states."""
        if self._is_wanted:
            self._hidden = output.last_hidden_state

    def end(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """After the forward: the values, as a part of the output. DDP follows no other way to a parameter."""
        if not self._is_wanted:
            return output
        hidden, self._hidden, self._is_wanted = self._hidden, None, False
        return ValuedOutput(**output, token_values=self(hidden))


def add_value_head(model: nn.Module) -> ValueHead:
    """Give a policy a value head; its scoring forwards then have `token_values` in their output."""
    size = model.config.get_text_config().hidden_size
    head = ValueHead(size, next(model.parameters()))
    backbone(model).register_forward_hook(head.keep)  # behind the one that keeps the scored positions alone
    model.register_forward_pre_hook(head.begin, with_kwargs=True)
    model.register_forward_hook(head.end)
    setattr(model, NAME, head)
    return head


@contextmanager
def without_head(model: nn.Module) -> Iterator[None]:
    """Inside, the model's parameters are the policy's alone, as vLLM expects them."""
    head = model._modules.pop(NAME, None)
    try:
        yield
    finally:
        if head is not None:
            model._modules[NAME] = head


class ValueModel:
    """Mixin of `Crediting`: trains a value model where the algorithm credits tokens by one."""

    _value_head: ValueHead | None = None
    _recipe: Recipe | None

    def _start_values(self) -> None:
        """Give the policy its value head, before anything wraps or shards the policy.

        Raises:
            ValueError: the run is of a kind that cannot train one.
        """
        if self._recipe is None or self._recipe.credit is None:
            return
        if self.is_fsdp_enabled:
            raise ValueError(
                f"--algorithm {self.args.algorithm} does not go with FSDP, which would not shard its value head; use "
                "DeepSpeed (configs/accelerate/zero3.yaml)"
            )
        if self.optimizer is not None:
            raise ValueError("an optimizer of your own does not train the value head; leave `optimizers` out")
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None and "optimizer" in plugin.deepspeed_config:
            raise ValueError(
                "an optimizer in the DeepSpeed file gives the value head no learning rate of its own; leave that "
                "section out and use --optim and --learning_rate"
            )
        self._value_head = add_value_head(self.model)
        self._values: list[Tensor] = []  # of the passes since it was emptied, each (B, C)
        self._keep_values = self._values.append
        if self.use_vllm:
            sync = self.vllm_generation.sync_weights

            def sync_policy() -> None:
                with without_head(self.model):
                    sync()

            self.vllm_generation.sync_weights = sync_policy

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._value_head is not None:
            self._values.clear()
        return super()._generate_and_score_completions(inputs)

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's own pass, of tools and of text models: its forwards' values are collected as they come."""
        if self._value_head is None or model is self.ref_model:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *rest, **more
            )
        found: list[Tensor] = []
        hook = self.accelerator.unwrap_model(self.model).register_forward_hook(
            lambda module, args, output: found.append(output.token_values) if isinstance(output, ValuedOutput) else None
        )
        try:
            scores = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *rest, **more
            )
        finally:
            hook.remove()
        self._values.append(torch.cat(found)[:, -logits_to_keep - 1 : -1])
        return scores

    def _credit_by_values(self, output: dict[str, Any]) -> None:
        """Advantages and returns of tokens, from their rewards and the values that the policy gave them."""
        if "old_per_token_logps" in output:
            values = self._values[0]  # of the same pass, the first one
        else:
            self._old_logps(output)
            values = self._values[-1]
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        own = self._own_rows(self._total(self._reward_table), len(mask))
        rewards = token_rewards(own, mask, None if self._kl is None else self._penalties)
        credit = self._recipe.credit(rewards, values, mask, **self._options_of(self._recipe.credit))
        output["values"], output["returns"] = values, credit.returns
        found, seen, returns, everywhere = self._everywhere(credit.advantages, values, credit.returns, mask)
        self._set_advantages(output, whitened(found, everywhere), everywhere)
        share = explained_variance(seen, returns, everywhere)
        if not math.isnan(share):
            self._metrics["train"]["explained_variance"].append(share)
        self._values.clear()

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self._value_head is None or "returns" not in inputs:
            return super()._compute_loss(model, inputs)
        self._values.clear()
        is_warming_up = self.state.global_step < self.args.value_warmup_steps
        self._value_head.is_alone = is_warming_up
        policy = super()._compute_loss(model, inputs)
        returns = inputs["returns"]  # NaN for completions without a reward
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1) * ~returns.isnan()
        losses = self._recipe.value_loss(
            self._values.pop(),
            inputs["values"],
            returns.nan_to_num(nan=0.0),
            **self._options_of(self._recipe.value_loss),
        )
        self._log_mean("value_loss", losses, mask)
        loss = self._averaged(losses, mask, inputs["num_items_in_batch"])
        return loss + (0.0 * policy if is_warming_up else policy)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """TRL's, with the value head in a group of its own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self._value_head is None or not is_new:
            return optimizer
        own = list(self._value_head.parameters())
        for group in optimizer.param_groups:
            group["params"] = [each for each in group["params"] if all(each is not parameter for parameter in own)]
        given = self.args.value_learning_rate
        rate = LEARNING_RATE if given is None else given
        optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        """TRL's; a checkpoint gives the value head back, too.

        Raises:
            ValueError: the checkpoint was written without a value model, or by that of another model.
        """
        if self._value_head is not None and resume_from_checkpoint is not None:
            self._load_head(Path(resume_from_checkpoint) / FILE)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def _load_head(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"{path.parent} has no {FILE}: it was written by an algorithm without a value model; begin anew with "
                f"--model_name_or_path {path.parent}"
            )
        saved, live = load_file(path), dict(self._value_head.named_parameters())
        for name, parameter in live.items():
            if saved[name].shape != getattr(parameter, "ds_shape", parameter.shape):
                raise ValueError(f"{path}: {name} is {tuple(saved[name].shape)}, this model's is {parameter.shape}")
        if all(not hasattr(parameter, "ds_shape") for parameter in live.values()):  # else DeepSpeed's file gives it
            for name, parameter in live.items():
                parameter.data.copy_(saved[name])

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._value_head is None:
            return
        with self._dist.gather_params(list(self._value_head.parameters())):
            if self.args.process_index == 0:
                path = Path(output_dir) / FILE
                partial = path.with_suffix(".partial")
                held = {name: each.detach().cpu().clone() for name, each in self._value_head.named_parameters()}
                save_file(held, partial, metadata={"format": "pt"})
                partial.replace(path)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """TRL's, without the head in what DeepSpeed gathered from parameters."""
        if state_dict is not None:
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith(f"{NAME}.")}
        super()._save(output_dir, state_dict=state_dict)


def check_values(args: Any, recipe: Recipe | None) -> None:
    """Refuse settings of the value model that are wrong, that would do nothing, or that it cannot be combined with.

    Raises:
        ValueError: says which, and what to do instead.
    """
    rate, steps = args.value_learning_rate, args.value_warmup_steps
    if recipe is None or recipe.credit is None:
        for name in [name for name, given in (("value_learning_rate", rate), ("value_warmup_steps", steps)) if given]:
            raise ValueError(f"--{name} has no effect without a value model; --algorithm ppo has one")
        return
    if rate is not None and rate <= 0:
        raise ValueError(f"--value_learning_rate must be above 0, got {rate:g}")
    if steps < 0:
        raise ValueError(f"--value_warmup_steps must not be negative, got {steps}")
    if args.loss_type not in AVERAGES:
        raise ValueError(
            f"--algorithm {args.algorithm} takes --loss_type {', '.join(AVERAGES)}, got {args.loss_type}: its value "
            "loss is averaged in the same way"
        )
    if args.sync_ref_model:
        raise ValueError(
            f"--sync_ref_model does not go with --algorithm {args.algorithm}: TRL pairs the parameters of both models, "
            "and the reference has no value head; leave it out"
        )
    if getattr(args, "dynamic_sampling", 0):
        raise ValueError(
            f"--dynamic_sampling leaves out groups of equal rewards, from which --algorithm {args.algorithm} does "
            "learn: it compares them with values; leave it out"
        )
