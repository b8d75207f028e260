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
from vlm_grpo.records import ImageRef
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.messages import MEDIA_COLUMNS, Prompt, read_prompt

logger = logging.getLogger(__name__)

TRIALS = 4  # different sizes on which a processor's rule is compared with what it does
KEPT = 8  # processed blank images


def drop_long_prompts(dataset: Any, encoder: PromptEncoder, limit: int) -> Any:
    """The rows whose prompt has at most `limit` tokens, image tokens included; how many were dropped is logged.

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
    kept, longest = [], 0
    for number in range(len(dataset)):
        length = length_of(dataset[number])
        longest = max(longest, length)
        if length <= limit:
            kept.append(number)
    _report(limit, len(kept), len(dataset), longest)
    return dataset.select(kept)


@dataclass
class _ShortRows:
    """Calling it is one pass over a stream without its over-long rows; the first tells how many there were."""

    dataset: IterableDataset
    length_of: PromptLengths
    limit: int
    is_told: bool = False

    def __call__(self) -> Iterator[dict[str, Any]]:
        total, kept, longest = 0, 0, 0
        for row in self.dataset:
            length = self.length_of(row)
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


class PromptLengths:
    """How many tokens the prompt of a row has as the model will read it; no image is decoded.

    Most processors have a rule for the tokens of an image of some size. For each number of images in a row it is
    compared with the processor itself on the first rows, and where they differ, or where there is no rule, every row
    is measured: the processor makes the prompt with blank images of the same sizes.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        self.measuring = PromptEncoder(encoder.plain, encoder.template_options)
        if self.measuring.once is not None:
            self.measuring.once.results = _Kept()
        self._blanks: dict[tuple[int, int], ImageRef] = {}
        self._rules: dict[int, _Rule] = {}

    def __call__(self, row: Mapping[str, Any]) -> int:
        """Return the length of a row's prompt, with every image's tokens."""
        prompt = read_prompt(row)
        if prompt.videos:
            return len(self.encoder.encode([row])[0].input_ids)  # a file has so many frames as are found in it
        sizes = [image_size(ref) for ref in prompt.images]
        if not sizes:
            return len(self.encoder.unexpanded_ids(prompt.messages))
        rule = self._rules.setdefault(len(sizes), _Rule())
        length = self._by_rule(prompt, sizes) if rule.holds else None
        if length is not None and not rule.is_new(sizes):
            return length
        measured = self._measured(row, sizes)
        rule.holds = measured == length
        return measured

    def _by_rule(self, prompt: Prompt, sizes: Sequence[tuple[int, int]]) -> int | None:
        """None where the processor has no rule, or one that fails, as LLaVA's does with images for SigLIP."""
        try:
            counts = self.encoder.plain._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes])
        except (AttributeError, TypeError, KeyError):
            return None
        return len(self.encoder.unexpanded_ids(prompt.messages)) - len(sizes) + sum(counts["num_image_tokens"])

    def _measured(self, row: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> int:
        if len(self._blanks) >= KEPT:
            self._blanks.clear()
            self.measuring.once.results = _Kept()
        for size in sizes:
            self._blanks.setdefault(size, image_ref(Image.new("RGB", size, "white")))
        rest = {name: value for name, value in row.items() if name not in MEDIA_COLUMNS}
        sample = {**rest, "prompt": read_prompt(row).messages, "images": [self._blanks[size] for size in sizes]}
        return len(self.measuring.encode([sample])[0].input_ids)


@dataclass
class _Rule:
    """A processor's own rule, for rows of one number of images: whether it holds, and on which sizes it was tried."""

    holds: bool = True
    tried: list[tuple[tuple[int, int], ...]] = field(default_factory=list)

    def is_new(self, sizes: Sequence[tuple[int, int]]) -> bool:
        """Whether the rule has to be tried on these sizes; the first few different ones count."""
        if tuple(sizes) in self.tried or len(self.tried) >= TRIALS:
            return False
        self.tried.append(tuple(sizes))
        return True


class _Kept(dict):
    """What was processed, beyond the call of the encoder that clears it."""

    def clear(self) -> None:
        """Keep everything."""


def prompt_length(row: Mapping[str, Any], encoder: PromptEncoder) -> int:
    """Tokens of one row's prompt; `PromptLengths` is for many."""
    return PromptLengths(encoder)(row)


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
