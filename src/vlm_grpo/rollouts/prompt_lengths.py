"""Prompt lengths without decoding an image, so that over-long prompts are dropped; completion lengths in the logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from torch import Tensor

from vlm_grpo.data.dataset import iterable_dataset
from vlm_grpo.data.images import image_ref, image_size
from vlm_grpo.records import ImageRef, NewRow, Row
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.messages import MEDIA_COLUMNS, Prompt, read_prompt

logger = logging.getLogger(__name__)

RULE_CHECKS = 4  # different sizes on which a processor's rule is compared with what it does
MAX_CACHED_IMAGES = 8  # processed blank images


def drop_long_prompts(dataset: Dataset, encoder: PromptEncoder, limit: int) -> Dataset | IterableDataset:
    """Return the rows whose prompt has at most `limit` tokens, image tokens included; the number dropped is logged.

    Rows of a stream are measured when they are reached.

    Raises:
        ValueError: every prompt is longer (of a stream: at its end).
        TypeError: the data set is neither a `Dataset` nor an `IterableDataset`.
    """
    length_of = PromptLengths(encoder)
    if isinstance(dataset, IterableDataset):
        return iterable_dataset(_ShortRows(dataset, length_of, limit))
    if not isinstance(dataset, Dataset):
        raise TypeError(f"--max_prompt_length: must have a Dataset or IterableDataset, got {type(dataset).__name__}")
    short_rows, longest = [], 0
    for number in range(len(dataset)):
        length = length_of(dataset[number])
        longest = max(longest, length)
        if length <= limit:
            short_rows.append(number)
    _report(limit, len(short_rows), len(dataset), longest)
    return dataset.select(short_rows)


@dataclass
class _ShortRows:
    """Each call is one pass over a stream without its over-long rows; the first one logs how many there were."""

    dataset: IterableDataset
    length_of: PromptLengths
    limit: int
    has_reported: bool = False

    def __call__(self) -> Iterator[NewRow]:
        total, num_kept, longest = 0, 0, 0
        for row in self.dataset:
            length = self.length_of(row)
            total, longest = total + 1, max(longest, length)
            if length <= self.limit:
                num_kept += 1
                yield row
        if not self.has_reported:
            _report(self.limit, num_kept, total, longest)
            self.has_reported = True


def _report(limit: int, num_kept: int, total: int, longest: int) -> None:
    if not num_kept:
        raise ValueError(f"--max_prompt_length {limit}: every prompt is longer, the longest has {longest} tokens")
    if num_kept < total:
        logger.warning("--max_prompt_length %d drops %d of %d rows", limit, total - num_kept, total)


class PromptLengths:
    """Counts the tokens of a row's prompt as the model will read it; no image is decoded.

    Most processors have a rule for the tokens of an image of some size. For each number of images in a row it is
    compared with the processor itself on the first rows, and where they differ, or where there is no rule, every row
    is measured: the processor makes the prompt with blank images of the same sizes.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        self.measuring_encoder = PromptEncoder(encoder.base_processor, encoder.template_options)
        self._reset_cache()
        self._blanks: dict[tuple[int, int], ImageRef] = {}
        self._rules: dict[int, _Rule] = {}

    def __call__(self, row: Row) -> int:
        """Return the length of a row's prompt, with every image's tokens."""
        prompt = read_prompt(row)
        if prompt.videos:
            return len(self.encoder.encode([row])[0].input_ids)  # a file has so many frames as are found in it
        sizes = [image_size(ref) for ref in prompt.images]
        if not sizes:
            return len(self.encoder.unexpanded_ids(prompt.messages))
        rule = self._rules.setdefault(len(sizes), _Rule())
        length = self._length_by_rule(prompt, sizes) if rule.holds else None
        if length is not None and not rule.is_new(sizes):
            return length
        measured = self._measure(row, sizes)
        rule.holds = measured == length
        return measured

    def _length_by_rule(self, prompt: Prompt, sizes: Sequence[tuple[int, int]]) -> int | None:
        """Return None where the processor has no rule, or one that fails, as LLaVA's does with images for SigLIP."""
        try:
            processor: Any = self.encoder.base_processor
            counts = processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes])
        except (AttributeError, TypeError, KeyError):
            return None
        return len(self.encoder.unexpanded_ids(prompt.messages)) - len(sizes) + sum(counts["num_image_tokens"])

    def _reset_cache(self) -> None:
        if self.measuring_encoder.cached_image_processor is not None:
            self.measuring_encoder.cached_image_processor.results = _PersistentCache()

    def _measure(self, row: Row, sizes: Sequence[tuple[int, int]]) -> int:
        if len(self._blanks) >= MAX_CACHED_IMAGES:
            self._blanks.clear()
            self._reset_cache()
        for size in sizes:
            self._blanks.setdefault(size, image_ref(Image.new("RGB", size, "white")))
        rest = {name: value for name, value in row.items() if name not in MEDIA_COLUMNS}
        sample = {**rest, "prompt": read_prompt(row).messages, "images": [self._blanks[size] for size in sizes]}
        return len(self.measuring_encoder.encode([sample])[0].input_ids)


@dataclass
class _Rule:
    """A processor's own rule, for rows of one number of images: whether it holds, and on which sizes it was tried."""

    holds: bool = True
    checked_sizes: list[tuple[tuple[int, int], ...]] = field(default_factory=list)

    def is_new(self, sizes: Sequence[tuple[int, int]]) -> bool:
        """Return whether the rule has to be checked on these sizes; only the first few different ones are."""
        if tuple(sizes) in self.checked_sizes or len(self.checked_sizes) >= RULE_CHECKS:
            return False
        self.checked_sizes.append(tuple(sizes))
        return True


class _PersistentCache(dict):
    """Processed images that survive the encoder's `clear`."""

    def clear(self) -> None:
        """Keep everything."""


def prompt_length(row: Row, encoder: PromptEncoder) -> int:
    """Return the number of tokens of one row's prompt; `PromptLengths` is for many."""
    return PromptLengths(encoder)(row)


def correct_lengths(metrics: Mapping[str, list[float]], lengths: Tensor, is_truncated: Tensor) -> None:
    """Overwrite TRL's latest completion-length metrics so that they count policy tokens only.

    Args:
        metrics: TRL's, of the phase.
        lengths: (B,) of all processes.
        is_truncated: (B,) whether the length limit truncated a completion.
    """
    terminated = lengths[~is_truncated] if not is_truncated.all() else torch.zeros(1)
    metrics["completions/clipped_ratio"][-1] = is_truncated.float().mean().item()
    for name, values in (("length", lengths), ("terminated_length", terminated)):
        for statistic in ("mean", "min", "max"):
            metrics[f"completions/{statistic}_{name}"][-1] = getattr(values, statistic)().item()
