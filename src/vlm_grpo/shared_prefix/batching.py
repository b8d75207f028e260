"""Rows that share a prompt stay together: in the order of a rollout, and in the forwards of a pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from vlm_grpo.rollouts.batch import prompt_groups
from vlm_grpo.rollouts.encoder import EncodedPrompt


def divide(
    samples: Sequence[EncodedPrompt],
    lengths: Sequence[int],
    budget: int,
    agree: Callable[[int, int], tuple[int, int]],
) -> list[list[int]]:
    """Row numbers of each forward of a pass: whole groups, about `budget` tokens in each.

    A group that is longer than the budget gets a forward of its own. `agree(wanted, groups)` gives the most forwards
    that any process wants and the fewest groups that any has: all processes run equally many.
    """
    groups = prompt_groups(samples)
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
