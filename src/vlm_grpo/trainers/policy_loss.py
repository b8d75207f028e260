"""The loss of an algorithm whose objective TRL does not have; KL, sampler correction and averaging are as in TRL's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.losses import LossInputs

# Settings that change TRL's loss and have no place in another one, with the value that leaves them out.
ONLY_IN_TRLS = {
    "delta": None,
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}
AVERAGES = ("grpo", "dr_grpo", "dapo")
MARKS = ("chosen", "is_expert", "verdict", "weight")  # of a rollout, for objectives


class OwnLoss:
    """Mixin over TRL's trainers: replaces their loss where `args.algorithm` has an objective of its own."""

    _recipe: Recipe | None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self._recipe is None or self._recipe.objective is None:
            return super()._compute_loss(model, inputs)
        completion = inputs["completion_mask"]
        mask = completion * inputs.get("tool_mask", 1)  # (B, C)
        ids, attention = (
            torch.cat(parts, dim=1)
            for parts in ((inputs["prompt_ids"], inputs["completion_ids"]), (inputs["prompt_mask"], completion))
        )
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model, ids, attention, completion.size(1), compute_entropy=True
        )
        advantages = inputs["advantages"]
        tokens = LossInputs(
            logps=logps,
            old=inputs.get("old_per_token_logps", logps.detach()),
            advantages=advantages if advantages.ndim == 2 else advantages[:, None],
            mask=mask,
            marks={name: inputs[name] for name in MARKS if name in inputs},
            entropies=entropies.detach(),
        )
        losses = self._recipe.objective(tokens, **self._options_of(self._recipe.objective))
        if "importance_sampling_ratio" in inputs:  # of vLLM
            losses = losses * inputs["importance_sampling_ratio"]
        sampled = mask * ~inputs["is_expert"] if "is_expert" in inputs else mask
        if self.beta != 0.0:
            distance = (inputs["ref_per_token_logps"] - logps) * sampled
            kl = distance.exp() - distance - 1
            losses = losses + self.beta * kl
            self._log_mean("kl", kl, sampled)
        self._log_mean("entropy", entropies, sampled)
        return self._averaged(losses, mask, inputs["num_items_in_batch"])

    def _averaged(self, losses: Tensor, mask: Tensor, tokens_of_rollout: Tensor) -> Tensor:
        """The loss of a micro-batch, by `--loss_type`, as a part of its optimizer step."""
        parts = self.current_gradient_accumulation_steps if self.model.training else 1
        sums = (losses * mask).sum(dim=1)
        if self.loss_type == "grpo":
            return (sums / mask.sum(dim=1).clamp(min=1)).mean() / parts
        if self.loss_type == "dr_grpo":
            return sums.sum() / (len(sums) * self.max_completion_length * parts)
        tokens = tokens_of_rollout.clamp(min=1) / self.accelerator.num_processes
        return sums.sum() / (tokens * parts / self.args.steps_per_generation if self.model.training else tokens)

    def _log_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        sums = torch.stack([(values.detach() * mask).sum(), mask.sum().to(values.dtype)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics["train" if self.model.training else "eval"][name].append(total / max(count, 1.0))


def check_objective(name: str, recipe: Recipe, args: Any) -> None:
    """Refuse settings that an objective of its own would leave out without a word.

    Raises:
        ValueError: says which.
    """
    for setting, without in ONLY_IN_TRLS.items():
        if getattr(args, setting) != without:
            raise ValueError(
                f"--{setting} {getattr(args, setting)} has no effect: --algorithm {name} has its own loss; leave it out"
            )
    if args.loss_type not in AVERAGES:
        raise ValueError(f"--algorithm {name} takes --loss_type {', '.join(AVERAGES)}, got {args.loss_type}")
