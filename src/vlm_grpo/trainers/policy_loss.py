"""The loss of an algorithm whose objective TRL does not have; KL, sampler correction and averaging are as in TRL's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.shared_prefix.packed_logprobs import TokenLogprobs

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


@dataclass(frozen=True)
class LossAverage:
    """How the losses of tokens become that of a micro-batch, as a part of its optimizer step: TRL's `--loss_type`."""

    loss_type: str
    max_completion_length: int
    steps_per_generation: int
    num_processes: int

    def __call__(
        self, losses: Tensor, mask: Tensor, tokens_of_rollout: Tensor, accumulation: int, is_training: bool
    ) -> Tensor:
        """Return the average of (B, C) losses where the mask is 1.

        Args:
            losses: of tokens.
            mask: 1 at tokens that count.
            tokens_of_rollout: how many tokens count in the whole rollout, on all processes.
            accumulation: micro-batches of the optimizer step; 1 in an evaluation.
            is_training: an evaluation has the whole rollout in one batch.
        """
        sums = (losses * mask).sum(dim=1)
        if self.loss_type == "grpo":
            return (sums / mask.sum(dim=1).clamp(min=1)).mean() / accumulation
        if self.loss_type == "dr_grpo":
            return sums.sum() / (len(sums) * self.max_completion_length * accumulation)
        tokens = tokens_of_rollout.clamp(min=1) / self.num_processes
        return sums.sum() / (tokens * accumulation / self.steps_per_generation if is_training else tokens)


class PolicyLoss:
    """The loss of an algorithm with an objective of its own.

    Args:
        objective: `LossInputs` to the (B, C) losses of tokens, from `algorithms/losses.py`.
        options: its keyword arguments.
        beta: coefficient of the KL in the loss.
        ranks: collectives of the run.
    """

    def __init__(self, objective: Callable[..., Tensor], options: Mapping[str, Any], beta: float, ranks: Ranks) -> None:
        self.objective, self.options, self.beta, self.ranks = objective, options, beta, ranks

    def __call__(self, scores: TokenLogprobs, batch: RolloutBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the (B, C) losses of a micro-batch's tokens, and the numbers to log."""
        marks = {
            "chosen": batch.token_mask,
            "is_expert": batch.is_expert,
            "verdict": batch.is_correct,
            "weight": batch.loss_weight,
        }
        tokens = LossInputs(
            logps=scores.logps,
            old=scores.logps.detach() if batch.old_logps is None else batch.old_logps,
            advantages=batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None],
            mask=batch.loss_mask,
            marks={name: value for name, value in marks.items() if value is not None},
            entropies=scores.entropies.detach(),
        )
        losses = self.objective(tokens, **self.options)
        if batch.importance_sampling_ratio is not None:  # of vLLM
            losses = losses * batch.importance_sampling_ratio
        sampled, logs = batch.sampled_mask, {}
        if self.beta != 0.0:
            distance = (batch.ref_logps - scores.logps) * sampled
            kl = distance.exp() - distance - 1
            losses = losses + self.beta * kl
            logs["kl"] = self.ranks.masked_mean(kl, sampled)
        return losses, {**logs, "entropy": self.ranks.masked_mean(scores.entropies, sampled)}


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
