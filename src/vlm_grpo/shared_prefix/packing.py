"""Prompts and completions in one row without padding: what stands where, and where its log-probability goes.

A group is `[prompt without its last token][last token, completion 1][last token, completion 2]...`. Every completion
begins with its own copy of the prompt's last token, at that token's position: the copy predicts the completion's first
token, and no position has to predict two. The last token of a completion predicts nothing and is left out, so a group
of G completions takes P - 1 + C1 + ... + CG tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_grpo.rollouts.encoder import EncodedPrompt


class Group(NamedTuple):
    """Where a group stands in the row: a prefix, then segments right after one another, each of `lengths` tokens."""

    start: int
    prefix: int
    lengths: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.start + self.prefix + sum(self.lengths)


@dataclass(frozen=True, eq=False)
class Layout:
    """What attention and head need to know of a packed row of L tokens.

    `scored` (S,) are the positions that predict a completion token; the head sees no others.
    """

    groups: tuple[Group, ...]
    scored: Tensor


@dataclass(frozen=True)
class Packed:
    """A packed row, its prompts in order, and where each scored token belongs in the (B, C) table of completions.

    Where no completion has a token, one position is scored that belongs nowhere.
    """

    prompts: list[EncodedPrompt]
    input_ids: Tensor  # (1, L)
    position_ids: Tensor  # (1, L), or (3, 1, L) with mRoPE
    labels: Tensor  # (1, S): the token that each scored position predicts
    layout: Layout
    rows: Tensor  # (S,)
    columns: Tensor  # (S,)


def pack(
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    positions_of: Callable[[EncodedPrompt], Tensor],
    dummies: Sequence[EncodedPrompt] = (),
) -> Packed:
    """Pack rows of which row b is `prompts[b]` followed by `completions[b]`; rows of one prompt form a group.

    Args:
        prompts: (B,), the same object for the completions of one prompt.
        completions: (B,), token ids without padding; an empty one is scored nowhere.
        positions_of: a prompt's positions, (1, P) or (3, P); with those of its completion where that shows images.
        dummies: prompts that are only there so that their images go through the vision tower.
    """
    members: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        members.setdefault(id(prompt), []).append(row)
    first = [prompts[rows[0]] for rows in members.values()]
    ids: list[int] = []
    scored: list[int] = []
    labels: list[int] = []
    columns: list[int] = []
    positions, groups, rows = [], [], []
    for prompt, numbers in zip([*first, *dummies], [*members.values(), *([] for _ in dummies)], strict=True):
        start, position_ids = len(ids), positions_of(prompt)
        last = len(prompt.input_ids) - 1
        ids += prompt.input_ids[:-1]
        positions.append(position_ids[:, :last])
        nonempty = [number for number in numbers if len(completions[number])]
        for number in nonempty:
            completion = completions[number]
            scored += range(len(ids), len(ids) + len(completion))
            ids += [prompt.input_ids[-1], *completion[:-1]]
            after = position_ids[:, last:]
            if prompt.segment is None:
                after = after + torch.arange(len(completion))
            positions.append(after[:, : len(completion)])
            labels += completion
            rows += [number] * len(completion)
            columns += range(len(completion))
        groups.append(Group(start, last, tuple(len(completions[number]) for number in nonempty)))
    if not labels:  # the head needs something to predict; its score belongs nowhere
        scored, labels = [len(ids) - 1], ids[-1:]
    return Packed(
        prompts=[*first, *dummies],
        input_ids=torch.tensor([ids]),
        position_ids=_model_positions(torch.cat(positions, dim=1)),
        labels=_indices(labels)[None],
        layout=Layout(tuple(groups), _indices(scored)),
        rows=_indices(rows),
        columns=_indices(columns),
    )


def _indices(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _model_positions(positions: Tensor) -> Tensor:
    """Return (1, L) positions as they are, and (3, L) positions of mRoPE as (3, 1, L)."""
    return positions if positions.size(0) == 1 else positions[:, None]
