"""The KL from the reference model as a part of the reward: a mixin over TRL's GRPO trainer, and what it refuses.

TRL's `beta` is the other way: the KL is a term of the loss. Both can be on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.advantages import EPSILON, dr_grpo, grpo, nanstd
from vlm_grpo.algorithms.values import ESTIMATORS, adaptive_kl_update, kl_of_tokens
from vlm_grpo.data.writing import write_whole

FILE = "kl_in_reward.json"


class KlPenalty:
    """Mixin of `Crediting`: the KL of every sampled token, and a coefficient that may follow a target."""

    _kl: Tensor | None = None  # (B, C) of the rollout that was just sampled, 0 where no token was chosen

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, **options: Any) -> None:
        self._kl_coefficient: float = getattr(args, "kl_in_reward", 0.0)
        with needing_reference(args, "beta", self._kl_coefficient):
            super().__init__(model, reward_funcs, args, **options)
        self.beta = self.args.beta

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._kl = None
        if not (self._kl_coefficient and self.model.training):
            return super()._generate_and_score_completions(inputs)
        with needing_reference(self, "beta", self._kl_coefficient):
            output = super()._generate_and_score_completions(inputs)
        reference = output["ref_per_token_logps"] if self.beta else output.pop("ref_per_token_logps")
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        kl = kl_of_tokens(self._old_logps(output), reference, self.args.kl_estimator)
        self._kl = kl.masked_fill(mask == 0, 0.0)
        self._penalties = self._kl_coefficient * self._kl
        self._follow_target(mask)
        return output

    def _penalised(self, rewards: Tensor) -> Tensor:
        """(B,) rewards of all processes' completions, each without the KL of its completion."""
        return rewards if self._kl is None else rewards - self.accelerator.gather(self._penalties.sum(dim=1))

    def _follow_target(self, mask: Tensor) -> None:
        """Log the KL of a token and the coefficient that this rollout is penalised with, then move it for the next."""
        sums = torch.stack([self._kl.sum(), mask.sum().to(self._kl), torch.ones_like(self._kl.sum()) * len(mask)])
        total, tokens, completions = self.accelerator.reduce(sums, reduction="sum").tolist()
        mean = total / max(tokens, 1.0)
        self._metrics["train"]["kl_in_reward"].append(mean)
        self._metrics["train"]["kl_in_reward_coefficient"].append(self._kl_coefficient)
        if self.args.kl_target is not None:
            self._kl_coefficient = adaptive_kl_update(
                self._kl_coefficient, mean, self.args.kl_target, round(completions)
            )

    def _save_rng_state(self, output_dir: str) -> None:
        if self._kl_coefficient and self.args.kl_target is not None and self.args.process_index == 0:
            path = Path(output_dir) / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"coefficient": self._kl_coefficient}) + "\n")
        super()._save_rng_state(output_dir)  # the last of it records what was written

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = None if checkpoint is None else Path(checkpoint) / FILE
        if path is not None and path.is_file() and getattr(self.args, "kl_target", None) is not None:
            self._kl_coefficient = json.loads(path.read_text(encoding="utf-8"))["coefficient"]


@contextmanager
def needing_reference(owner: Any, name: str, coefficient: float) -> Iterator[None]:
    """Let TRL load and run a reference model: it does so where its own coefficient, `name` of `owner`, is not 0."""
    before = getattr(owner, name, None)
    if not coefficient or before:
        yield
        return
    setattr(owner, name, coefficient)
    try:
        yield
    finally:
        setattr(owner, name, before)


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
