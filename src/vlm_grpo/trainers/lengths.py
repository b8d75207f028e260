"""Prompt lengths without decoding an image, so that over-long prompts are dropped; completion lengths in the logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from vlm_grpo.data.images import image_size
from vlm_grpo.data.stream import iterable_dataset
from vlm_grpo.trainers.messages import read_prompt
from vlm_grpo.trainers.rollout import PromptEncoder

logger = logging.getLogger(__name__)


def drop_long_prompts(dataset: Any, encoder: PromptEncoder, limit: int) -> Any:
    """The rows whose prompt has at most `limit` tokens, image tokens included; how many were dropped is logged.

    Rows of a stream are measured when they are reached.

    Raises:
        ValueError: every prompt is longer (of a stream: at its end), or the processor cannot tell image tokens.
        TypeError: the data set is neither a `Dataset` nor an `IterableDataset`.
    """
    if isinstance(dataset, IterableDataset):
        return iterable_dataset(_ShortRows(dataset, encoder, limit))
    if not isinstance(dataset, Dataset):
        raise TypeError(f"--max_prompt_length: must have a Dataset or IterableDataset, got {type(dataset).__name__}")
    kept, longest = [], 0
    for number in range(len(dataset)):
        length = prompt_length(dataset[number], encoder)
        longest = max(longest, length)
        if length <= limit:
            kept.append(number)
    _report(limit, len(kept), len(dataset), longest)
    return dataset.select(kept)


@dataclass
class _ShortRows:
    """Calling it is one pass over a stream without its over-long rows; the first tells how many there were."""

    dataset: IterableDataset
    encoder: PromptEncoder
    limit: int
    is_told: bool = False

    def __call__(self) -> Iterator[dict[str, Any]]:
        total, kept, longest = 0, 0, 0
        for row in self.dataset:
            length = prompt_length(row, self.encoder)
            total, longest = total + 1, max(longest, length)
            if length <= self.limit:
                kept += 1
                yield row
        if not self.is_told:
            _report(self.limit, kept, total, longest)
            self.is_told = True


def _report(limit: int, kept: int, total: int, longest: int) -> None:
    if not kept:
        raise ValueError(f"--max_prompt_length {limit}: every prompt is longer, the longest has {longest} tokens")
    if kept < total:
        logger.warning("--max_prompt_length %d drops %d of %d rows", limit, total - kept, total)


def prompt_length(row: Mapping[str, Any], encoder: PromptEncoder) -> int:
    """Tokens of a row's prompt as the model will read it: every placeholder counts as its image's tokens.

    Raises:
        ValueError: the row has images and its processor cannot tell how many tokens they become.
    """
    prompt = read_prompt(row)
    if prompt.videos:
        return len(encoder.encode([row])[0].input_ids)  # how many frames a file has is known when it is decoded
    ids = encoder.unexpanded_ids(prompt.messages)
    tokens = image_tokens([image_size(ref) for ref in prompt.images], encoder.processor)
    return len(ids) - len(prompt.images) + sum(tokens)


def image_tokens(sizes: Sequence[tuple[int, int]], processor: Any) -> list[int]:
    """How many tokens images of some (width, height) in pixels become, by the processor's own rule."""
    if not sizes:
        return []
    if not hasattr(processor, "_get_num_multimodal_tokens"):
        name = type(processor).__name__
        raise ValueError(f"--max_prompt_length: {name} cannot tell how many tokens an image becomes; leave it out")
    return processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes])["num_image_tokens"]


def correct_lengths(metrics: Mapping[str, list[float]], lengths: Tensor, is_cut: Tensor) -> None:
    """Let TRL's last statistics of completion lengths be those of the tokens that the model wrote itself.

    Args:
        metrics: TRL's, of the phase.
        lengths: (B,) of all processes.
        is_cut: (B,) whether the limit on its length ended a completion.
    """
    ended = lengths[~is_cut] if not is_cut.all() else torch.zeros(1)
    metrics["completions/clipped_ratio"][-1] = is_cut.float().mean().item()
    for name, values in (("length", lengths), ("terminated_length", ended)):
        for statistic in ("mean", "min", "max"):
            metrics[f"completions/{statistic}_{name}"][-1] = getattr(values, statistic)().item()
