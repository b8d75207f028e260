"""The KL from the reference model as a penalty in the reward, with a fixed or an adaptive coefficient.

TRL's `beta` adds the KL to the loss instead. Both can be used together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlm_grpo.rollouts.ranks import Ranks

ESTIMATORS = ("k1", "k2", "k3")


def kl_of_tokens(logps: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """Return an estimate of KL(policy || reference) at each token that the policy sampled.

    With d = log p - log p_ref: k1 is d, unbiased and of either sign; k2 is d^2 / 2, biased, never negative; k3 is
    exp(-d) - 1 + d, unbiased and never negative (Schulman, "Approximating KL Divergence", 2020).

    Raises:
        ValueError: there is no such estimator.
    """
    difference = logps - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return (-difference).exp() - 1 + difference
    raise ValueError(f"--kl_estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")


def adaptive_kl_update(coefficient: float, kl: float, target: float, completions: int, horizon: int = 10_000) -> float:
    """Return the coefficient after a rollout; it rises if the KL is above the target.

    beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon), the controller of arXiv:1909.08593, section 2.2, applied
    once for all n completions of a rollout.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * completions / horizon)


class KLController:
    """The coefficient of the KL in the reward, fixed or adapted to a target (arXiv:1909.08593).

    Args:
        coefficient: penalty per nat; 0 turns the KL in the reward off.
        target: KL per token, in nats, that the coefficient is adapted to; None keeps it fixed.
        estimator: one of ESTIMATORS.
        ranks: collectives of the run.
    """

    state_file = "kl_in_reward.json"  # in a checkpoint

    def __init__(self, coefficient: float, target: float | None, estimator: str, ranks: Ranks) -> None:
        self.coefficient, self.target, self.estimator, self.ranks = coefficient, target, estimator, ranks
        self.kl: Tensor | None = None  # (B, C) of the last rollout, 0 where the mask is 0

    def penalties(self, old_logps: Tensor, ref_logps: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the (B, C) penalties of the tokens of a rollout and numbers to log; then adapt the coefficient.

        Args:
            old_logps: log-probabilities under the policy that sampled the tokens.
            ref_logps: log-probabilities under the reference model.
            mask: 1 at the tokens of the loss.
        """
        self.kl = kl_of_tokens(old_logps, ref_logps, self.estimator).masked_fill(mask == 0, 0.0)
        penalties = self.coefficient * self.kl
        sums = torch.stack([self.kl.sum(), mask.sum().to(self.kl), torch.ones_like(self.kl.sum()) * len(mask)])
        total, tokens, completions = self.ranks.sum(sums).tolist()
        mean = total / max(tokens, 1.0)
        logs = {"kl_in_reward": mean, "kl_in_reward_coefficient": self.coefficient}
        if self.target is not None:
            self.coefficient = adaptive_kl_update(self.coefficient, mean, self.target, round(completions))
        return penalties, logs

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must hold: the coefficient if it is adapted, else nothing."""
        return {"coefficient": self.coefficient} if self.coefficient and self.target is not None else {}

    def load_state_dict(self, state: Mapping[str, float], where: str) -> None:
        """Restore the coefficient of a checkpoint if this run adapts it."""
        if self.target is not None:
            self.coefficient = state["coefficient"]


def validate_kl_reward(args: Any, *, is_rloo: bool) -> None:
    """Check the settings of the KL in the reward.

    Raises:
        ValueError: one is invalid, has no effect, or conflicts with another setting.
    """
    coefficient, target = args.kl_reward_coef, args.kl_target
    if args.kl_estimator not in ESTIMATORS:
        raise ValueError(f"--kl_estimator must be one of {', '.join(ESTIMATORS)}, got {args.kl_estimator!r}")
    if coefficient < 0:
        raise ValueError(
            f"--kl_reward_coef must be >= 0, got {coefficient:g}: a negative "
            "coefficient rewards diverging from the reference model"
        )
    if target is not None and target <= 0:
        raise ValueError(f"--kl_target must be above 0 (nats of a token), got {target:g}")
    if not coefficient:
        given = {"kl_target": target is not None, "kl_estimator": args.kl_estimator != "k1"}
        for name in (name for name, is_given in given.items() if is_given):
            raise ValueError(f"--{name} has no effect without --kl_reward_coef, the initial coefficient")
        return
    if is_rloo:
        raise ValueError(
            f"--kl_reward_coef does not go with --trainer rloo: TRL's RLOO has the KL in its reward already; "
            f"leave it out and use --beta {coefficient:g}"
        )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"--kl_reward_coef does not go with --multi_objective_aggregation {args.multi_objective_aggregation}, "
            "which scales every reward by itself; use --beta, the KL in the loss"
        )
