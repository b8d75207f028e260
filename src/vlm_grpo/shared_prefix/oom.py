"""Splits packed forwards into smaller parts after they ran out of memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Part = TypeVar("Part")
Scores = TypeVar("Scores")

logger = logging.getLogger(__name__)


class ForwardSplitter:
    """Into how many parts each packed row is split; it grows when memory runs out and stays for the rest of the run.

    The parts of a split row are computed again in the backward pass, so that only one of them holds its activations:
    the gradient is the same, for a third more work (as in gradient caching, arXiv:2101.06983).
    """

    def __init__(self) -> None:
        self.parts = 1

    def halve(self, rows: int, error: BaseException) -> None:
        """Double the number of parts, with a warning.

        Raises:
            torch.OutOfMemoryError: the given error, where each of the `rows` is forwarded alone already.
        """
        if self.parts >= rows:
            raise error
        self.parts *= 2
        free_memory()
        logger.warning(
            "out of memory: each forward of shared prompts is split into %d parts from here on, which is slower; "
            "nothing is lost. A smaller --max_tokens_per_forward or --per_device_train_batch_size avoids this",
            self.parts,
        )

    def split(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the rows of a forward in as many parts, none of them empty."""
        size = -(-len(rows) // self.parts)
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

    def run(self, forward: Callable[[Part], Scores], part: Part) -> Scores:
        """Run the forward of a part; where rows are split, its activations are recomputed in the backward pass."""
        if self.parts == 1 or not torch.is_grad_enabled():
            return forward(part)
        return checkpoint(forward, part, use_reentrant=False)


def free_memory() -> None:
    """Free the memory of a failed forward."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
