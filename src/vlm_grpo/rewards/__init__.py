"""Rewards: pure functions `(completion, record) -> float | None`, listed by name. None means not applicable."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.adapter import Reward, batch_reward, checked, load_user_reward, record_from, split_spec
from vlm_grpo.rewards.box import center_reward, giou_reward, iou_at_half_reward, iou_reward, iou_squared_reward
from vlm_grpo.rewards.format import format_reward
from vlm_grpo.rewards.length import cosine_length_reward, overlong_reward, repetition_reward
from vlm_grpo.table import Table
from vlm_grpo.text import completion_text

REWARDS: Table[Reward] = Table(
    "reward",
    {
        "format": format_reward,
        "accuracy": accuracy_reward,
        "iou": iou_reward,
        "iou@0.5": iou_at_half_reward,
        "iou^2": iou_squared_reward,
        "giou": giou_reward,
        "center": center_reward,
        "length": cosine_length_reward,
        "repetition": repetition_reward,
        "overlong": overlong_reward,
    },
)


def score(name: str, completion: Any, **columns: Any) -> float | None:
    """The reward of one completion; columns are the record's values (`answer`, `task`, `options`, ...)."""
    record = columns.get("record") or record_from(columns)
    return checked(name, REWARDS[name], completion_text(completion), record)


def make_reward(name: str, **options: Any) -> Callable[..., list[float | None]]:
    """The reward as a callable for any TRL trainer; options are its keyword arguments."""
    return batch_reward(name, partial(REWARDS[name], **options) if options else REWARDS[name])


def resolve_rewards(
    specs: list[str], max_completion_length: int | None = None
) -> tuple[list[Callable[..., list[float | None]]], list[float]]:
    """Callables and weights for `NAME[:WEIGHT]` and `path/to/file.py:function[:WEIGHT]`.

    Raises:
        KeyError: an unknown name.
        ValueError: a weight that is no number, a file or function that does not exist.
    """
    pairs = [split_spec(spec) for spec in specs]
    return [_resolve(name, max_completion_length) for name, _ in pairs], [weight for _, weight in pairs]


def _resolve(name: str, max_completion_length: int | None) -> Callable[..., list[float | None]]:
    if ".py:" in name:
        return load_user_reward(name)
    takes_limit = "max_length" in inspect.signature(REWARDS[name]).parameters
    return make_reward(name, **({"max_length": max_completion_length} if takes_limit and max_completion_length else {}))
