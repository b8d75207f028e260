"""The advantages of TRL's trainers, from the rewards of all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_grpo.algorithms.group import EPSILON, dr_grpo, grpo, nanstd, rloo

SCALES = ("group", "batch", "none")


class GroupAdvantages(NamedTuple):
    """(N,) advantages, 0 where no reward applied, and for each group or completion whether rewards do not vary."""

    values: Tensor
    is_std_zero: Tensor


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return (N,) weighted sums of (N, F) rewards; NaN where no reward applied."""
    total = (rewards * weights.to(rewards.device)).nansum(dim=1)
    return total.masked_fill(rewards.isnan().all(dim=1), torch.nan)


def grpo_advantages(totals: Tensor, num_generations: int, scale_rewards: str) -> GroupAdvantages:
    """Return GRPO's advantages of (N,) weighted rewards for `--scale_rewards` group, batch or none.

    Raises:
        ValueError: there is no such scale.
    """
    if scale_rewards not in SCALES:
        raise ValueError(f"--scale_rewards must be one of {', '.join(SCALES)}, got {scale_rewards!r}")
    table = totals.view(-1, num_generations)
    advantages = grpo(table) if scale_rewards == "group" else dr_grpo(table)
    if scale_rewards == "batch":
        advantages = advantages / (nanstd(totals[None]) + EPSILON)
    is_zero = _is_spread_zero(totals[None] if scale_rewards == "batch" else table)  # (1, 1) or (P, 1)
    return GroupAdvantages(advantages.nan_to_num(nan=0.0).flatten(), is_zero.expand_as(table).flatten())


def normalized_advantages(rewards: Tensor, weights: Tensor, num_generations: int) -> GroupAdvantages:
    """Return GDPO's advantages: (N, F) rewards normalized one by one within groups, then summed and normalized again.

    TRL's `--multi_objective_aggregation normalize_then_sum` (arXiv:2601.05242).
    """
    columns = [grpo(column.view(-1, num_generations)).flatten() for column in rewards.T]
    totals = weighted_sum(torch.stack(columns, dim=1), weights).masked_fill(rewards.isnan().all(dim=1), torch.nan)
    values = (totals - totals.nanmean()) / (nanstd(totals[None])[0] + EPSILON)
    return GroupAdvantages(values.nan_to_num(nan=0.0), _is_spread_zero(totals[None]).expand(1, len(totals)).flatten())


def rloo_advantages(
    totals: Tensor,
    num_generations: int,
    *,
    clip_range: Sequence[float] | None = None,
    penalties: Tensor | None = None,
    is_normalized: bool = False,
) -> GroupAdvantages:
    """Return RLOO's advantages of (N,) weighted rewards: each minus the mean of its group's others (arXiv:2402.14740).

    Args:
        totals: NaN where no reward applied.
        num_generations: completions per prompt; with one, all advantages are 0.
        clip_range: least and largest reward.
        penalties: (N,), what the KL of each completion costs; subtracted after clipping.
        is_normalized: whether advantages are normalized over all completions.
    """
    if clip_range:
        totals = totals.clamp(min=clip_range[0], max=clip_range[1])
    if penalties is not None:
        totals = totals - penalties
    table = totals.view(-1, num_generations)
    known = (~table.isnan()).sum(dim=1, keepdim=True)
    values = rloo(table).masked_fill(known < 2, torch.nan) if num_generations > 1 else torch.zeros_like(table)
    values = values.flatten()
    if is_normalized:
        values = (values - values.nanmean()) / (nanstd(values[None])[0] + EPSILON)
    return GroupAdvantages(values.nan_to_num(nan=0.0), _is_spread_zero(table).flatten())


def _is_spread_zero(table: Tensor) -> Tensor:
    """Return (P, 1), whether the known rewards of each row are equal; rows of several with fewer than two are not."""
    is_known = (~table.isnan()).sum(dim=1, keepdim=True) >= min(2, table.size(1))
    spread = nanstd(table)
    return torch.isclose(spread, torch.zeros_like(spread)) & is_known
