"""What one process sampled and what became of it, for whoever shows a training while it runs.

Nothing is gathered here: completions and rewards are what TRL gathered for its own logs, images and advantages are this
process's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from vlm_grpo.rollouts.batch import RolloutBatch

PER_COMPLETION = ("rows", "images", "completions", "advantages", "lengths", "is_cut")


@dataclass(frozen=True)
class LoggedRollout:
    """The completions of one process; all lists have one entry for each of them, those of a group side by side."""

    step: int  # the optimizer step that trains on them first, counted from 1
    rows: Sequence[Mapping[str, Any]]  # of the data
    images: Sequence[Sequence[Any]]  # decoded
    completions: Sequence[Any]  # text, or the messages that were sampled
    rewards: Mapping[str, Sequence[float]]  # NaN where a reward does not apply
    advantages: Sequence[float]  # as the loss uses them
    lengths: Sequence[int]  # tokens
    is_cut: Sequence[bool]  # ended by the limit on their length

    def first(self, count: int) -> LoggedRollout:
        """The first so many completions alone; the images of the others can be freed."""
        lists = {name: getattr(self, name)[:count] for name in PER_COMPLETION}
        return replace(self, rewards={name: values[:count] for name, values in self.rewards.items()}, **lists)


class SampleLocation(NamedTuple):
    """When and where something was sampled."""

    step: int
    rank: int
    world: int


def local_rollout(
    rows: Sequence[Mapping[str, Any]],
    images: Sequence[Sequence[Any]],
    batch: RolloutBatch,
    logs: Mapping[str, Any],
    ends: Iterable[int],
    place: SampleLocation,
    turns: Sequence[Any] = (),
) -> LoggedRollout:
    """This process's part of the rollout that was scored last.

    Args:
        rows: this process's rows of the data, one for each completion.
        images: their decoded images.
        batch: what was made of them, for the loss.
        logs: what TRL gathered; each list ends with this rollout's values of all processes, in order of rank.
        ends: tokens that end a completion, and the one that pads it.
        place: of this process.
        turns: what the assistant said in each row, with what the prompt had opened of it; else TRL's completions.
    """
    lengths, is_cut = completion_lengths(batch.completion_ids, batch.completion_mask, ends)
    return LoggedRollout(
        step=place.step,
        rows=rows,
        images=images,
        completions=turns or _own_part(logs["completion"], len(rows), place),
        rewards={name: _own_part(values, len(rows), place) for name, values in logs["rewards"].items()},
        advantages=_of_completions(batch.advantages, batch.completion_mask),
        lengths=lengths,
        is_cut=is_cut,
    )


def _of_completions(advantages: Tensor, mask: Tensor) -> list[float]:
    """(B,) advantages as they are; of (B, C) the mean of each completion's tokens."""
    if advantages.ndim == 1:
        return advantages.tolist()
    return ((advantages * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).tolist()


def _own_part(gathered: Iterable[Any], count: int, place: SampleLocation) -> list[Any]:
    latest = list(gathered)[-count * place.world :]
    return latest[place.rank * count : (place.rank + 1) * count]


def completion_lengths(ids: Tensor, mask: Tensor, ends: Iterable[int]) -> tuple[list[int], list[bool]]:
    """Tokens of each completion, and whether the limit on its length ended it.

    Args:
        ids: (B, T) tokens, padded on the right up to the longest completion.
        mask: (B, T), 1 where there is a token; all 0 where truncated completions are left out of the loss.
        ends: tokens that end a completion, and the one that pads it.
    """
    known = set(ends)
    is_cut = [last not in known for last in ids[:, -1].tolist()]
    lengths = [ids.shape[1] if cut else count for cut, count in zip(is_cut, mask.sum(dim=1).tolist(), strict=True)]
    return lengths, is_cut


def plain_messages(messages: Any) -> Any:
    """A conversation whose messages hold text and nothing else; text stays as it is.

    W&B's tables refuse a column whose values differ in their keys, as blocks of text and of images do.
    """
    if isinstance(messages, str):
        return messages
    return [{"role": str(message.get("role")), "content": _message_text(message)} for message in messages]


def _message_text(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    return content_text(message.get("content")) + (json.dumps(calls, default=str) if calls else "")


def content_text(content: Any) -> str:
    """The content of one message as text, with `[image]` where an image is, apart from the words beside it."""
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
