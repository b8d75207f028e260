"""The order of prompts: TRL's, and the same after a resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from trl.trainer.utils import RepeatSampler

from vlm_grpo.data.dataset import iterable_dataset
from vlm_grpo.records import Row

SHUFFLE_BUFFER = 1000  # rows of a stream that are shuffled together


class EpochSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose permutation depends on the epoch alone.

    TRL draws one permutation after the other from a single generator, so a run that resumes in a later epoch sees the
    first epoch's order again. Here epoch n always draws the n-th permutation, which is TRL's own in a whole run.
    """

    epoch = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.num_samples < self.batch_size:
            raise ValueError(
                f"train_dataset: {self.num_samples} rows are fewer than the {self.batch_size} prompts of one rollout "
                "(generation_batch_size / num_generations), so that nothing would be trained; give more rows, or make "
                "per_device_train_batch_size or steps_per_generation smaller"
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the training loop calls this before each one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


def infinite(dataset: IterableDataset, seed: int | None) -> IterableDataset:
    """Return the stream repeated for ever, as a single shard; with a seed, every pass in another order.

    A stream has no length, so a resumed run cannot know how many passes are done: transformers skips batches in the
    first pass, which has too few if there were several. In an infinite stream it skips all that were used. Each process
    reads all of it and takes its part of each group; see `iterable_dataset` for what shards would do.

    Raises:
        ValueError: while it is read, if a whole pass has no row.
    """
    return iterable_dataset(partial(_passes, dataset, seed))


def _passes(dataset: IterableDataset, seed: int | None) -> Iterator[Row]:
    for number in count():
        is_empty = True
        for row in dataset if seed is None else _shuffled(dataset, np.random.default_rng([seed, number])):
            is_empty = False
            yield row
        if is_empty:
            raise ValueError("train_dataset: the stream has no rows")


def _shuffled(rows: Iterable[Row], generator: np.random.Generator) -> Iterator[Row]:
    """Yield each row once, in a random order, through a shuffle buffer. Earlier rows tend to come earlier."""
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(row)
            continue
        number = int(generator.integers(SHUFFLE_BUFFER))
        yield buffer[number]
        buffer[number] = row
    yield from (buffer[number] for number in generator.permutation(len(buffer)))
