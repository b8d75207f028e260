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
    """A packed row, its samples in order, and the place of each scored token in the (B, C) table of completions.

    Where no completion has a token, one position is scored that has no place.
    """

    samples: list[EncodedPrompt]
    input_ids: Tensor  # (1, L)
    position_ids: Tensor  # (1, L), or (3, 1, L) with mRoPE
    labels: Tensor  # (1, S): the token that each scored position predicts
    layout: Layout
    rows: Tensor  # (S,)
    columns: Tensor  # (S,)


def pack(
    samples: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    positions_of: Callable[[EncodedPrompt], Tensor],
    blanks: Sequence[EncodedPrompt] = (),
) -> Packed:
    """Pack rows of which row b is `samples[b]` followed by `completions[b]`; rows of one sample form a group.

    Args:
        samples: (B,), the same object for the completions of one prompt.
        completions: (B,), token ids without padding; an empty one is scored nowhere.
        positions_of: a prompt's positions, (1, P) or (3, P); with those of its completion where that shows images.
        blanks: prompts that are only there so that their images go through the vision tower.
    """
    members: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        members.setdefault(id(sample), []).append(row)
    first = [samples[rows[0]] for rows in members.values()]
    ids: list[int] = []
    scored: list[int] = []
    labels: list[int] = []
    columns: list[int] = []
    positions, groups, rows = [], [], []
    for sample, numbers in zip([*first, *blanks], [*members.values(), *([] for _ in blanks)], strict=True):
        start, place = len(ids), positions_of(sample)
        last = len(sample.input_ids) - 1
        ids += sample.input_ids[:-1]
        positions.append(place[:, :last])
        filled = [number for number in numbers if len(completions[number])]
        for number in filled:
            completion = completions[number]
            scored += range(len(ids), len(ids) + len(completion))
            ids += [sample.input_ids[-1], *completion[:-1]]
            after = place[:, last:] + torch.arange(len(completion)) if sample.later is None else place[:, last:]
            positions.append(after[:, : len(completion)])
            labels += completion
            rows += [number] * len(completion)
            columns += range(len(completion))
        groups.append(Group(start, last, tuple(len(completions[number]) for number in filled)))
    if not labels:  # the head needs something to predict; its score has no place
        scored, labels = [len(ids) - 1], ids[-1:]
    return Packed(
        samples=[*first, *blanks],
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
    """(1, L) stays; (3, L) of mRoPE becomes (3, 1, L)."""
    return positions if positions.size(0) == 1 else positions[:, None]
