"""Rows that share a prompt stay together: in the order of a rollout, and in the forwards of a pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.trainers.rollout import Sample


def runs(samples: Sequence[Sample]) -> list[list[int]]:
    """Numbers of neighbouring rows that continue the same prompt."""
    found: list[list[int]] = []
    for row, sample in enumerate(samples):
        if row and sample is samples[row - 1]:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def shuffle_groups(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows of a rollout with whole groups in a random order; TRL's own shuffle would scatter their completions.

    As many random numbers are drawn as TRL draws; a group stands where the first of its rows came to stand.
    """
    group_of = {row: group for group in runs(batch["samples"]) for row in group}
    drawn = torch.randperm(len(batch["samples"])).tolist()
    order = [row for group in {id(group_of[row]): group_of[row] for row in drawn}.values() for row in group]

    def permuted(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.ndim == 0 else value[order]
        return None if value is None else [value[row] for row in order]

    return {name: permuted(value) for name, value in batch.items()}


def divide(
    samples: Sequence[Sample],
    lengths: Sequence[int],
    budget: int,
    agree: Callable[[int, int], tuple[int, int]],
) -> list[list[int]]:
    """Row numbers of each forward of a pass: whole groups, about `budget` tokens in each.

    A group that is longer than the budget gets a forward of its own. `agree(wanted, groups)` gives the most forwards
    that any process wants and the fewest groups that any has: all processes run equally many.
    """
    groups = runs(samples)
    tokens = [len(samples[group[0]].input_ids) + sum(lengths[row] for row in group) for group in groups]
    wanted = next((n for n in range(math.ceil(sum(tokens) / budget), len(groups)) if _fits(tokens, n, budget)), None)
    most, fewest = agree(min(wanted or len(groups), len(groups)), len(groups))
    parts = _parts(tokens, min(most, fewest))
    return [[row for group in groups[start:end] for row in group] for start, end in parts]


def _fits(tokens: list[int], count: int, budget: int) -> bool:
    return all(sum(tokens[start:end]) <= budget or end == start + 1 for start, end in _parts(tokens, count))


def _parts(tokens: list[int], count: int) -> list[tuple[int, int]]:
    """`count` ranges of neighbouring groups, none empty, of about equally many tokens."""
    ends, whole = list(accumulate(tokens)), sum(tokens)
    cuts = [0]
    for part in range(1, count):
        ideal = next(place for place, end in enumerate(ends, 1) if end >= whole * part / count)
        cuts.append(min(max(ideal, cuts[-1] + 1), len(tokens) - (count - part)))
    cuts.append(len(tokens))
    return list(pairwise(cuts))
