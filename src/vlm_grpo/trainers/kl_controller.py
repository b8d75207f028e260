"""The KL from the reference model as a part of the reward: its coefficient, and the settings that it refuses.

TRL's `beta` is the other way: the KL is a term of the loss. Both can be on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.advantages import EPSILON, dr_grpo, grpo, nanstd
from vlm_grpo.algorithms.values import ESTIMATORS, adaptive_kl_update, kl_of_tokens
from vlm_grpo.rollouts.ranks import Ranks


class KLController:
    """The coefficient of the KL in the reward, which may follow a target (arXiv:1909.08593).

    Args:
        coefficient: what a nat costs; 0 is no KL in the reward.
        target: nats of a token that the coefficient is moved for; None leaves it.
        estimator: one of ESTIMATORS.
        ranks: collectives of the run.
    """

    file = "kl_in_reward.json"  # of a checkpoint

    def __init__(self, coefficient: float, target: float | None, estimator: str, ranks: Ranks) -> None:
        self.coefficient, self.target, self.estimator, self.ranks = coefficient, target, estimator, ranks
        self.kl: Tensor | None = None  # (B, C) of the rollout that was sampled last, 0 where no token counts

    def penalties(self, old: Tensor, reference: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return what the (B, C) tokens of a rollout cost, and the numbers to log; then move the coefficient.

        Args:
            old: log-probabilities under the policy that sampled them.
            reference: under the reference model.
            mask: 1 at tokens that count.
        """
        self.kl = kl_of_tokens(old, reference, self.estimator).masked_fill(mask == 0, 0.0)
        costs = self.coefficient * self.kl
        sums = torch.stack([self.kl.sum(), mask.sum().to(self.kl), torch.ones_like(self.kl.sum()) * len(mask)])
        total, tokens, completions = self.ranks.sum(sums).tolist()
        mean = total / max(tokens, 1.0)
        logs = {"kl_in_reward": mean, "kl_in_reward_coefficient": self.coefficient}
        if self.target is not None:
            self.coefficient = adaptive_kl_update(self.coefficient, mean, self.target, round(completions))
        return costs, logs

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps: nothing, where the coefficient stays as it is given."""
        return {"coefficient": self.coefficient} if self.coefficient and self.target is not None else {}

    def load_state_dict(self, state: Mapping[str, float], where: str) -> None:
        """Go on with the coefficient of a checkpoint, where this run has a target."""
        if self.target is not None:
            self.coefficient = state["coefficient"]


@contextmanager
def loading_reference(args: Any, coefficient: float) -> Iterator[None]:
    """Let TRL load a reference model: it does so where its own coefficient is not 0 while it is built."""
    before = getattr(args, "beta", None)
    if not coefficient or before:
        yield
        return
    args.beta = coefficient
    try:
        yield
    finally:
        args.beta = before


def as_trl(rewards: Tensor, num_generations: int, scale_rewards: str) -> Tensor:
    """The advantages that TRL gives (B,) rewards, for `--scale_rewards` group, none or batch; NaN gives 0."""
    table = rewards.view(-1, num_generations)
    if scale_rewards == "group":
        found = grpo(table)
    else:
        found = dr_grpo(table)
        if scale_rewards == "batch":
            found = found / (nanstd(table.reshape(1, -1)) + EPSILON)
    return found.nan_to_num(nan=0.0).flatten()


def check_penalty(args: Any, recipe: Recipe | None) -> None:
    """Refuse settings of the KL in the reward that are wrong, or that would do nothing.

    Raises:
        ValueError: says which, and what to do instead.
    """
    coefficient, target = args.kl_in_reward, args.kl_target
    if args.kl_estimator not in ESTIMATORS:
        raise ValueError(f"--kl_estimator must be one of {', '.join(ESTIMATORS)}, got {args.kl_estimator!r}")
    if coefficient < 0:
        raise ValueError(f"--kl_in_reward must not be negative, got {coefficient:g}: it would pay for leaving")
    if target is not None and target <= 0:
        raise ValueError(f"--kl_target must be above 0 (nats of a token), got {target:g}")
    if not coefficient:
        given = {"kl_target": target is not None, "kl_estimator": args.kl_estimator != "k1"}
        for name in (name for name, is_given in given.items() if is_given):
            raise ValueError(f"--{name} has no effect without --kl_in_reward, the coefficient that it begins with")
        return
    if not isinstance(args, GRPOConfig):
        raise ValueError(
            f"--kl_in_reward does not go with --trainer rloo: TRL's RLOO has the KL in its reward already; "
            f"leave it out and use --beta {coefficient:g}"
        )
    if recipe is not None and recipe.expert is not None:
        raise ValueError(
            f"--kl_in_reward does not go with --algorithm {args.algorithm}: an expert's completions, which the policy "
            "did not sample, have no KL; use --beta, the KL in the loss"
        )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"--kl_in_reward does not go with --multi_objective_aggregation {args.multi_objective_aggregation}, which "
            "scales every reward by itself; use --beta, the KL in the loss"
        )
