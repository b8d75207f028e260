"""Rows of rollouts as TRL holds them, a dict of tensors and lists: some of them, or those of several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

OF_PROMPTS = ("prompt_ids", "prompt_mask")  # padded on the left; all other (B, C) tensors on the right
FILL = {"tool_mask": 1}


def taken(rollout: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The rollout with these rows alone, in this order; what belongs to no row stays as it is."""

    def chosen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.ndim == 0 else value[list(rows)]
        return [value[row] for row in rows] if isinstance(value, list) else value

    return {name: chosen(value) for name, value in rollout.items()}


def joined(rollouts: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
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
