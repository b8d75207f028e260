"""What TRL logs of a rollout: lengths, rewards, the table of completions, and what reward functions log themselves."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vlm_grpo.algorithms.group import nanstd
from vlm_grpo.rollouts.multi_turn import trajectory_metrics
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.rollouts.rollout import Rollout
from vlm_grpo.rollouts.trajectory import Trajectory

Metrics = MutableMapping[str, list[float]]


class RolloutLogger:
    """Writes into TRL's metrics and its table of completions.

    Args:
        ranks: collectives of the run.
        table: TRL's columns of completions.
        pending_metrics: values that reward functions logged, by name.
        pending_columns: what they logged of each completion, by column.
        names: of the rewards.
    """

    def __init__(
        self,
        ranks: Ranks,
        table: Mapping[str, Any],
        pending_metrics: MutableMapping[str, list[float]],
        pending_columns: MutableMapping[str, list[Any]],
        names: Sequence[str],
    ) -> None:
        self.ranks, self.table, self.names = ranks, table, list(names)
        self.pending_metrics, self.pending_columns = pending_metrics, pending_columns

    def log_lengths(self, metrics: Metrics, rollout: Rollout, is_truncated: Sequence[bool]) -> None:
        """Log how many tokens the policy wrote in each completion; demonstrations count only where all are such."""
        lengths = [sum(each.tool_mask) for each in rollout.trajectories] or [len(ids) for ids in rollout.ids]
        is_sampled = [row not in rollout.demonstrations for row in range(len(lengths))]
        facts = list(zip(lengths, is_truncated, is_sampled, strict=True))
        table = self.ranks.gather(torch.tensor(facts, dtype=torch.float, device=self.ranks.device))
        if table[:, 2].any():
            table = table[table[:, 2] > 0]
        tokens, is_cut = table[:, 0], table[:, 1] > 0
        ended = tokens[~is_cut] if not is_cut.all() else torch.zeros(1)
        metrics["completions/clipped_ratio"].append(is_cut.float().mean().item())
        for name, values in (("length", tokens), ("terminated_length", ended)):
            metrics[f"completions/mean_{name}"].append(values.mean().item())
            metrics[f"completions/min_{name}"].append(values.min().item())
            metrics[f"completions/max_{name}"].append(values.max().item())

    def log_trajectories(self, metrics: Metrics, trajectories: Sequence[Trajectory]) -> None:
        """Log the numbers of trajectories, and how often tools were called and failed."""
        for trajectory in trajectories:
            for name, value in trajectory_metrics(trajectory).items():
                self.pending_metrics.setdefault(name, []).append(value)
        counts = [[each.num_calls, each.num_failed_calls, 1] for each in trajectories]
        totals = self.ranks.sum(torch.tensor(counts, device=self.ranks.device).sum(dim=0)).tolist()
        metrics["tools/call_frequency"].append(totals[0] / totals[2])
        metrics["tools/failure_frequency"].append(totals[1] / max(totals[0], 1))

    def log_rewards(self, metrics: Metrics, rewards: Tensor, totals: Tensor, is_std_zero: Tensor) -> None:
        """Log means and deviations of (all B, F) rewards and of their (all B,) weighted sums."""
        for number, name in enumerate(self.names):
            self._log_moments(metrics, f"rewards/{name}/mean", f"rewards/{name}/std", rewards[:, number])
        self._log_moments(metrics, "reward", "reward_std", totals)
        metrics["frac_reward_zero_std"].append(is_std_zero.float().mean().item())

    @staticmethod
    def _log_moments(metrics: Metrics, mean: str, deviation: str, values: Tensor) -> None:
        metrics[mean].append(values.nanmean().item())
        has_spread = (~values.isnan()).sum() > 1
        metrics[deviation].append(nanstd(values[None]).item() if has_spread else float("nan"))

    def log_completions(
        self, prompts: Sequence[Any], completions: Sequence[Any], rewards: Tensor, advantages: Sequence[float]
    ) -> None:
        """Add a rollout to the table: this process's prompts and completions, and the numbers of all processes."""
        self.table["prompt"].extend(gather_object(list(prompts)))
        self.table["completion"].extend(gather_object(list(completions)))
        for number, name in enumerate(self.names):
            self.table["rewards"][name].extend(rewards[:, number].tolist())
        self.table["advantages"].extend(advantages)

    def replace_advantages(self, advantages: Sequence[float]) -> None:
        """Put other advantages in place of those of the last rollout in the table."""
        column = self.table["advantages"]
        for _ in advantages:
            column.pop()
        column.extend(advantages)

    def last_rewards(self, count: int) -> Tensor:
        """Return the (count, F) rewards of the completions that the table ends with."""
        columns = [list(self.table["rewards"][name])[-count:] for name in self.names]
        return torch.tensor(columns, device=self.ranks.device).T

    def flush_pending(self, metrics: Metrics, count: int) -> None:
        """Log what reward functions logged of `count` completions; all processes take the names in the same order."""
        for column in sorted(set(gather_object(list(self.pending_columns)))):
            values = self.pending_columns.get(column, [None] * count)
            self.table["extra"][column].extend(gather_object(values))
        for name in sorted(set(gather_object(list(self.pending_metrics)))):
            values = self.pending_metrics.get(name, [])
            total, number = self.ranks.sum(torch.tensor([sum(values), len(values)], device=self.ranks.device).float())
            metrics[name].append((total / number).item())
        self.forget_pending()

    def forget_pending(self) -> None:
        """Drop what reward functions logged since the last rollout was logged."""
        self.pending_columns.clear()
        self.pending_metrics.clear()
