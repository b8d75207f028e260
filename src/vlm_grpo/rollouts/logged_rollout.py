"""The completions that one process sampled, with rewards and advantages, for the training dashboard.

Nothing is gathered here: completions and rewards are what TRL gathered for its own logs, images and advantages are this
process's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from torch import Tensor

from vlm_grpo.records import Columns, Completion, Message, Row
from vlm_grpo.rollouts.batch import RolloutBatch

if TYPE_CHECKING:
    from PIL import Image


PER_COMPLETION = ("rows", "images", "completions", "advantages", "lengths", "is_truncated")


Item = TypeVar("Item")


@dataclass(frozen=True)
class LoggedRollout:
    """The completions of one process; all lists have one entry for each of them, those of a group side by side."""

    step: int  # the optimizer step that trains on them first, counted from 1
    rows: Sequence[Row]  # of the data
    images: Sequence[Sequence[Image.Image]]  # decoded
    completions: Sequence[Completion]  # text, or the messages that were sampled
    rewards: Mapping[str, Sequence[float]]  # NaN where a reward does not apply
    advantages: Sequence[float]  # as the loss uses them
    lengths: Sequence[int]  # tokens
    is_truncated: Sequence[bool]  # ended by the limit on their length

    def first(self, count: int) -> LoggedRollout:
        """Return the first `count` completions alone; the images of the others can be freed."""
        lists = {name: getattr(self, name)[:count] for name in PER_COMPLETION}
        return replace(self, rewards={name: values[:count] for name, values in self.rewards.items()}, **lists)


class SampleLocation(NamedTuple):
    """When and where something was sampled."""

    step: int
    rank: int
    world_size: int


def local_rollout(
    rows: Sequence[Row],
    images: Sequence[Sequence[Image.Image]],
    batch: RolloutBatch,
    logs: Columns,
    stop_token_ids: Iterable[int],
    location: SampleLocation,
    turns: Sequence[Completion] = (),
) -> LoggedRollout:
    """Return this process's part of the rollout that was scored last.

    Args:
        rows: this process's rows of the data, one for each completion.
        images: their decoded images.
        batch: the completions, for the loss.
        logs: what TRL gathered; each list ends with this rollout's values of all processes, in order of rank.
        stop_token_ids: tokens that end a completion, and the one that pads it.
        location: of this process.
        turns: the assistant's whole turn in each row, the prompt's part of it included; else TRL's completions.
    """
    lengths, is_truncated = completion_lengths(batch.completion_ids, batch.completion_mask, stop_token_ids)
    return LoggedRollout(
        step=location.step,
        rows=rows,
        images=images,
        completions=turns or _local_part(logs["completion"], len(rows), location),
        rewards={name: _local_part(values, len(rows), location) for name, values in logs["rewards"].items()},
        advantages=_mean_advantages(batch.advantages, batch.completion_mask),
        lengths=lengths,
        is_truncated=is_truncated,
    )


def _mean_advantages(advantages: Tensor, mask: Tensor) -> list[float]:
    """Return (B,) advantages as they are; of (B, C) the mean over each completion's tokens."""
    if advantages.ndim == 1:
        return advantages.tolist()
    return ((advantages * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).tolist()


def _local_part(gathered: Iterable[Item], count: int, location: SampleLocation) -> list[Item]:
    latest = list(gathered)[-count * location.world_size :]
    return latest[location.rank * count : (location.rank + 1) * count]


def completion_lengths(ids: Tensor, mask: Tensor, stop_token_ids: Iterable[int]) -> tuple[list[int], list[bool]]:
    """Return the number of tokens of each completion, and whether the length limit truncated it.

    Args:
        ids: (B, T) tokens, padded on the right up to the longest completion.
        mask: (B, T), 1 where there is a token; all 0 where truncated completions are left out of the loss.
        stop_token_ids: tokens that end a completion, and the one that pads it.
    """
    stop_tokens = set(stop_token_ids)
    is_truncated = [last not in stop_tokens for last in ids[:, -1].tolist()]
    lengths = [
        ids.shape[1] if cut else count for cut, count in zip(is_truncated, mask.sum(dim=1).tolist(), strict=True)
    ]
    return lengths, is_truncated


def plain_messages(messages: Completion) -> Completion:
    """Return a conversation whose messages hold text and nothing else; text stays as it is.

    W&B's tables refuse a column whose values differ in their keys, as blocks of text and of images do.
    """
    if isinstance(messages, str):
        return messages
    turns = messages or []
    return [{"role": str(message.get("role")), "content": _message_text(message)} for message in turns]


def _message_text(message: Message) -> str:
    calls = message.get("tool_calls")
    return content_text(message.get("content")) + (json.dumps(calls, default=str) if calls else "")


def content_text(content: object) -> str:
    """Return the content of one message as text, with `[image]` for an image, separated from the words beside it."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return str(content or "")
    text, was_text = "", True
    for block in content:
        is_text = block.get("type") == "text"
        part = str(block.get("text") or "") if is_text else f"[{block.get('type')}]"
        is_apart = not part or part[0].isspace() or not text or text[-1].isspace()
        text += part if is_apart or is_text == was_text else f" {part}"
        was_text = is_text if part else was_text
    return text
