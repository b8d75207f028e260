"""Splits the rows of a pass into forwards by a token budget; rows that share a prompt stay together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from vlm_grpo.rollouts.batch import prompt_groups
from vlm_grpo.rollouts.encoder import EncodedPrompt


def split_into_forwards(
    prompts: Sequence[EncodedPrompt],
    lengths: Sequence[int],
    budget: int,
    sync_counts: Callable[[int, int], tuple[int, int]],
) -> list[list[int]]:
    """Return the row numbers of each forward of a pass: whole groups, about `budget` tokens in each.

    A group that is longer than the budget gets a forward of its own. All processes run equally many:
    `sync_counts(num_forwards, num_groups)` returns the most forwards that any process needs and the fewest groups that
    any has.
    """
    groups = prompt_groups(prompts)
    tokens = [len(prompts[group[0]].input_ids) + sum(lengths[row] for row in group) for group in groups]
    num_needed = next(
        (n for n in range(math.ceil(sum(tokens) / budget), len(groups)) if _fits(tokens, n, budget)), None
    )
    most, fewest = sync_counts(min(num_needed or len(groups), len(groups)), len(groups))
    parts = _parts(tokens, min(most, fewest))
    return [[row for group in groups[start:end] for row in group] for start, end in parts]


def _fits(tokens: list[int], count: int, budget: int) -> bool:
    return all(sum(tokens[start:end]) <= budget or end == start + 1 for start, end in _parts(tokens, count))


def _parts(tokens: list[int], count: int) -> list[tuple[int, int]]:
    """Return `count` ranges of neighbouring groups, none empty, of about equally many tokens."""
    ends, total = list(accumulate(tokens)), sum(tokens)
    cuts = [0]
    for part in range(1, count):
        ideal = next(index for index, end in enumerate(ends, 1) if end >= total * part / count)
        cuts.append(min(max(ideal, cuts[-1] + 1), len(tokens) - (count - part)))
    cuts.append(len(tokens))
    return list(pairwise(cuts))
