"""Rows of rollouts as TRL holds them, a dict of tensors and lists: some of them, or those of several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.rollouts.encoder import EncodedPrompt

OF_PROMPTS = ("prompt_ids", "prompt_mask")  # padded on the left; all other (B, C) tensors on the right
FILL = {"tool_mask": 1}


def select_rows(rollout: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The rollout with these rows alone, in this order; what belongs to no row stays as it is."""

    def chosen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.ndim == 0 else value[list(rows)]
        return [value[row] for row in rows] if isinstance(value, list) else value

    return {name: chosen(value) for name, value in rollout.items()}


def concat_rollouts(rollouts: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """The rows of all rollouts in their order, padded to the longest; of what belongs to no row the first one's."""
    first = rollouts[0]
    result: dict[str, Any] = {}
    for name, value in first.items():
        values = [rollout[name] for rollout in rollouts]
        if isinstance(value, list):
            result[name] = [item for part in values for item in part]
        elif isinstance(value, Tensor) and value.ndim:
            result[name] = torch.cat(_padded(name, values, pad_token_id))
        else:
            result[name] = value
    return result


def _padded(name: str, values: Sequence[Tensor], pad_token_id: int) -> list[Tensor]:
    if values[0].ndim < 2:
        return list(values)
    fill = pad_token_id if name.endswith("_ids") else FILL.get(name, 0)
    longest = max(value.size(1) for value in values)
    missing = [longest - value.size(1) for value in values]
    sides = [(count, 0) if name in OF_PROMPTS else (0, count) for count in missing]
    return [torch.nn.functional.pad(value, side, value=fill) for value, side in zip(values, sides, strict=True)]


def prompt_groups(samples: Sequence[EncodedPrompt]) -> list[list[int]]:
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
    group_of = {row: group for group in prompt_groups(batch["samples"]) for row in group}
    drawn = torch.randperm(len(batch["samples"])).tolist()
    order = [row for group in {id(group_of[row]): group_of[row] for row in drawn}.values() for row in group]

    def permuted(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.ndim == 0 else value[order]
        return None if value is None else [value[row] for row in order]

    return {name: permuted(value) for name, value in batch.items()}
