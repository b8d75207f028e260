"""What token losses are given, and how a micro-batch averages them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vlm_grpo.records import required

if TYPE_CHECKING:
    from vlm_grpo.rollouts.batch import RolloutBatch
    from vlm_grpo.shared_prefix.packed_logprobs import TokenLogprobs

AVERAGES = ("grpo", "dr_grpo", "dapo")


@dataclass(frozen=True)
class LossInputs:
    """The tokens of a micro-batch, and what the hooks of an algorithm recorded about them."""

    logps: Tensor  # (B, C), log-probabilities under the policy, with gradient
    old_logps: Tensor  # (B, C), under the policy that sampled the tokens
    advantages: Tensor  # (B, C) or (B, 1)
    mask: Tensor  # (B, C), 1 at the tokens that the loss counts
    entropies: Tensor | None = None  # (B, C), of the policy at each token, without gradient
    token_mask: Tensor | None = None  # (B, C) of bool, the tokens that the algorithm selected
    is_expert: Tensor | None = None  # (B, 1) of bool, which completions are demonstrations
    is_correct: Tensor | None = None  # (B, 1), 1 for a correct completion, -1 for an incorrect one, 0 if unknown
    loss_weight: Tensor | None = None  # (B, 1), weights of completions

    @classmethod
    def of_batch(cls, batch: RolloutBatch, scores: TokenLogprobs) -> LossInputs:
        """Return the inputs for a micro-batch and its scores under the policy."""
        return cls(
            logps=scores.logps,
            old_logps=scores.logps.detach() if batch.old_logps is None else batch.old_logps,
            advantages=batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None],
            mask=batch.loss_mask,
            entropies=None if scores.entropies is None else scores.entropies.detach(),
            token_mask=batch.token_mask,
            is_expert=batch.is_expert,
            is_correct=batch.is_correct,
            loss_weight=batch.loss_weight,
        )


@dataclass(frozen=True)
class LossAverage:
    """The average of token losses in a micro-batch, as its share of an optimizer step, by TRL's `--loss_type`."""

    loss_type: str
    max_completion_length: int
    steps_per_generation: int
    num_processes: int

    def __call__(
        self, losses: Tensor, mask: Tensor, tokens_of_rollout: Tensor | None, accumulation: int, is_training: bool
    ) -> Tensor:
        """Return the average of (B, C) losses where the mask is 1.

        Args:
            losses: of tokens.
            mask: 1 at tokens that count.
            tokens_of_rollout: number of tokens that count in the whole rollout, on all processes.
            accumulation: micro-batches of the optimizer step; 1 in an evaluation.
            is_training: an evaluation has the whole rollout in one batch.
        """
        sums = (losses * mask).sum(dim=1)
        if self.loss_type == "grpo":
            return (sums / mask.sum(dim=1).clamp(min=1)).mean() / accumulation
        if self.loss_type == "dr_grpo":
            return sums.sum() / (len(sums) * self.max_completion_length * accumulation)
        tokens = required(tokens_of_rollout, "the number of tokens").clamp(min=1) / self.num_processes
        return sums.sum() / (tokens * accumulation / self.steps_per_generation if is_training else tokens)
