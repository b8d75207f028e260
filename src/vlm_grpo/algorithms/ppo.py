"""PPO (arXiv:1707.06347): advantages of tokens from a value model, and the loss of that model.

The value model itself is `trainers/critic.py`. All tensors are (B, C), one row for each completion; the mask is 1 at
the tokens that the policy generated. Other tokens (tool results, padding) are skipped: GAE carries the value and the
advantage of the next policy token across them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import (
    Advantages,
    Algorithm,
    AlgorithmConfig,
    AlgorithmOptions,
    ScoredRollout,
    validate_average,
)
from vlm_grpo.algorithms.group import NO_SPREAD
from vlm_grpo.algorithms.token_rewards import token_rewards, whiten
from vlm_grpo.records import required

if TYPE_CHECKING:
    from vlm_grpo.rollouts.batch import RolloutBatch

VALUE_MODELS = SHARED, OWN = ("shared", "own")  # a head on the policy's last hidden states, or on a model of its own


class GAEOutput(NamedTuple):
    """(B, C) advantages, not whitened, and the (B, C) returns that are the targets of the values."""

    advantages: Tensor
    returns: Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> GAEOutput:
    """Return the generalized advantage estimates (arXiv:1506.02438, equation 16) of tokens.

    delta_t = r_t + gamma V_next - V_t; A_t = delta_t + gamma lam A_next; return_t = A_t + V_t, where `next` is the next
    policy token, and 0 after the last one.
    """
    is_policy = mask.bool()
    advantages = torch.zeros_like(values)
    value, advantage = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])  # of the next policy token, (B,)
    for place in reversed(range(values.size(1))):
        here = is_policy[:, place]
        delta = rewards[:, place] + gamma * value - values[:, place]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        value = torch.where(here, values[:, place], value)
        advantages[:, place] = advantage
    advantages = advantages.masked_fill(~is_policy, 0.0)
    return GAEOutput(advantages, (advantages + values).masked_fill(~is_policy, 0.0))


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip: float = 0.2, value_coef: float = 0.5
) -> Tensor:
    """Return `value_coef` times half the squared error of each value, whose change from the old value is clipped.

    max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, as PPO's authors implemented it for arXiv:1707.06347.
    """
    clipped = torch.clamp(values, old_values - value_clip, old_values + value_clip)
    return value_coef * 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(R - V) / Var(R) over the policy tokens; NaN if R is constant.

    It is 1 for exact values and 0 for constant ones.
    """
    known = mask.bool() & ~returns.isnan()
    errors, targets = (returns - values)[known].double(), returns[known].double()
    if len(targets) < 2 or targets.var() <= NO_SPREAD**2:
        return float("nan")
    return (1 - errors.var() / targets.var()).item()


@dataclass(frozen=True)
class PPOOptions(AlgorithmOptions):
    """`value_model` is a head on the policy (shared) or on a second model (own)."""

    value_model: str = SHARED

    def validate(self, num_generations: int) -> str | None:
        return None if self.value_model in VALUE_MODELS else f"value_model must be one of {', '.join(VALUE_MODELS)}"


class PPO(Algorithm):
    """Advantages of tokens by GAE, whitened over all tokens of the rollout."""

    Options = PPOOptions
    options: PPOOptions
    option_functions = (gae, clipped_value_loss)
    needs_values = True
    needs_old_logps = True
    skips_zero_advantage = False  # the values have a loss in any case

    @classmethod
    def validate(cls, name: str, config: AlgorithmConfig, args: Any) -> None:
        """Check the training arguments, those of the value model included."""
        super().validate(name, config, args)
        rate, steps = args.value_learning_rate, args.value_warmup_steps
        if rate is not None and rate <= 0:
            raise ValueError(f"--value_learning_rate must be above 0, got {rate:g}")
        if steps < 0:
            raise ValueError(f"--value_warmup_steps must not be negative, got {steps}")
        validate_average(name, args, "averages its value loss in the same way")
        if args.sync_ref_model:
            raise ValueError(
                f"--sync_ref_model does not go with --algorithm {name}: TRL pairs the parameters of both models, and "
                "the reference model has no value head; leave it out"
            )
        if getattr(args, "dynamic_sampling", 0):
            raise ValueError(
                f"--dynamic_sampling leaves out groups of equal rewards, from which --algorithm {name} does learn: it "
                "compares them with values; leave it out"
            )

    def advantages(self, rollout: ScoredRollout) -> Advantages:
        """Return the whitened advantages of tokens; the batch gets its values and returns."""
        batch = rollout.batch
        mask, values = batch.loss_mask, required(rollout.values, "the value model's score")
        rewards = token_rewards(self.ranks.local_rows(rollout.totals, len(batch)), mask, rollout.penalties)
        estimates = self.call(gae, rewards, values, mask)
        batch.values, batch.returns = values, estimates.returns
        gathered = self.ranks.gather_padded(estimates.advantages, values, estimates.returns, mask)
        advantages, all_values, returns, everywhere = gathered
        explained = explained_variance(all_values, returns, everywhere)
        if not math.isnan(explained):
            rollout.metrics["explained_variance"].append(explained)
        return Advantages(whiten(advantages, everywhere), everywhere)

    def value_loss(self, values: Tensor, batch: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Return the (B, C) losses of values, and their mask: completions without a reward have no loss."""
        returns = required(batch.returns, "the return of tokens")
        mask = batch.loss_mask * ~returns.isnan()
        return self.call(clipped_value_loss, values, batch.values, returns.nan_to_num(nan=0.0)), mask
