"""PPO's value model (arXiv:1707.06347) inside a training: its values, loss, learning rate and file.

It sees the state before each token and says what the completion will still earn. Its modules are in `value_head.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.values import OWN, SHARED, VALUE_MODELS, explained_variance, token_rewards, whiten
from vlm_grpo.trainers.policy_loss import AVERAGES
from vlm_grpo.trainers.value_head import (
    NAME,
    OwnValueModel,
    ValuedOutput,
    ValueHead,
    add_value_head,
    load_head,
    without_head,
)

LEARNING_RATES = {SHARED: 1e-4, OWN: 1e-5}


class ValueModel:
    """Mixin of `Crediting`: trains a value model where the algorithm credits tokens by one."""

    _value_head: ValueHead | None = None
    _recipe: Recipe | None
    _algorithm_options: dict[str, Any]

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
        self._value_head = add_value_head(self.model, self._value_kind, self._dist.gather_params)
        if isinstance(self._value_head, OwnValueModel):
            self._start_own(self._value_head)
        self._values: list[Tensor] = []  # of the passes since it was emptied, each (B, C)
        self._keep_values = self._values.append
        if self.use_vllm:
            sync = self.vllm_generation.sync_weights

            def sync_policy() -> None:
                with without_head(self.model):
                    sync()

            self.vllm_generation.sync_weights = sync_policy

    @property
    def _value_kind(self) -> str:
        return self._algorithm_options.get("value_model", SHARED)

    def _start_own(self, own: OwnValueModel) -> None:
        """Save its activations' memory, too, and keep it out of what ZeRO-3 gathers for generation.

        An adapter's model hands gradient checkpointing on to the model below it alone.
        """
        if self.args.gradient_checkpointing and hasattr(self.model, "get_base_model"):
            options = dict(self.args.gradient_checkpointing_kwargs or {})
            ways = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
            own.backbone.activation_checkpointing_enable(options or None, **ways)
        generate = self._generate_single_turn

        def generate_by_policy(*args: Any, **kwargs: Any) -> Any:
            with own.aside():
                return generate(*args, **kwargs)

        self._generate_single_turn = generate_by_policy

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
        self._set_advantages(output, whiten(found, everywhere), everywhere)
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
        """TRL's, with the value model in groups of its own; the head is the last."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self._value_head is None or not is_new:
            return optimizer
        own = {id(each) for each in self._value_head.parameters()}
        linear = [self._value_head.weight, self._value_head.bias]
        given = self.args.value_learning_rate
        rate = LEARNING_RATES[self._value_kind] if given is None else given
        for group in list(optimizer.param_groups):
            moved = [each for each in group["params"] if id(each) in own - {id(one) for one in linear}]
            group["params"] = [each for each in group["params"] if id(each) not in own]
            if moved:
                optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": group["weight_decay"]})
        optimizer.add_param_group({"params": linear, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        """TRL's; a checkpoint gives the value head back, too.

        Raises:
            ValueError: the checkpoint was written without a value model, or by that of another model.
        """
        if self._value_head is not None and resume_from_checkpoint is not None:
            load_head(self._value_head, resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def _save_rng_state(self, output_dir: str) -> None:
        if self._value_head is not None:
            self._save_value_head(output_dir)
        super()._save_rng_state(output_dir)  # the last of it records what was written

    def _save_value_head(self, output_dir: str) -> None:
        held = {}
        for name, parameter in self._value_head.named_parameters():
            with self._dist.gather_params([parameter]):
                if self.args.process_index == 0:
                    held[name] = parameter.detach().cpu().clone()
        if self.args.process_index == 0:
            path = Path(output_dir) / self._value_head.file
            partial = path.with_suffix(".partial")
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
    kind = (args.algorithm_options or {}).get("value_model", SHARED)
    if kind not in VALUE_MODELS:
        raise ValueError(f"--algorithm_options: value_model must be one of {', '.join(VALUE_MODELS)}, got {kind!r}")
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
