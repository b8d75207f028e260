"""What happens when a packed forward or its backward runs out of memory: it is cut, and the step is taken again."""

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
    """Into how many parts each packed row is cut; it grows when memory runs out and stays for the rest of the run.

    The parts of a cut row are computed again in the backward pass, so that only one of them holds its activations:
    the gradient is the same, for a third more work (as in gradient caching, arXiv:2101.06983).
    """

    def __init__(self) -> None:
        self.parts = 1

    def halve(self, rows: int, error: BaseException) -> None:
        """Cut what is forwarded once more in two, with a warning.

        Raises:
            torch.OutOfMemoryError: the given error; already, each of the `rows` goes alone.
        """
        if self.parts >= rows:
            raise error
        self.parts *= 2
        release()
        logger.warning(
            "out of memory: each forward of shared prompts is cut into %d parts from here on, which costs time; "
            "nothing is lost. --max_tokens_per_forward or --per_device_train_batch_size set less from the start",
            self.parts,
        )

    def cut(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows of a forward in as many parts, none of them empty."""
        size = -(-len(rows) // self.parts)
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

    def run(self, forward: Callable[[Part], Scores], part: Part) -> Scores:
        """A part's forward; where rows are cut, its activations are made again when its gradient is wanted."""
        if self.parts == 1 or not torch.is_grad_enabled():
            return forward(part)
        return checkpoint(forward, part, use_reentrant=False)


def release() -> None:
    """Give back what a failed forward held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
