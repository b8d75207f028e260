"""The order of prompts: TRL's, and the same again after a resume."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose permutation depends on the epoch alone.

    TRL draws one permutation after the other from a single generator, so a run that resumes in a later epoch sees the
    first epoch's order again. Here epoch n always draws the n-th permutation, which is TRL's own in a whole run.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()
