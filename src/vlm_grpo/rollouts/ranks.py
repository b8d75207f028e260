"""Collectives over all processes, and a process's own rows of what was gathered."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, stack, tensor

from vlm_grpo.rollouts.encoder import MEDIA_KINDS


class Ranks:
    """Collectives of a run; every process takes part in each of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index
        self.device: torch.device = accelerator.device

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of their ranks."""
        return self.accelerator.gather(values)

    def gather_padded(self, *tables: Tensor) -> list[Tensor]:
        """Return (B, C) tables of all processes' rows, padded to the longest completion of any."""
        pad = self.accelerator.pad_across_processes
        return [self.gather(pad(table.contiguous(), dim=1)) for table in tables]

    def local_rows(self, values: Tensor, count: int) -> Tensor:
        """Return this process's `count` rows of those of all."""
        return values[self.index * count :][:count]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self.accelerator.reduce(values, reduction="sum")

    def any(self, claim: bool) -> bool:
        """Return whether a claim holds on any process."""
        return bool(self.gather(tensor([claim], device=self.accelerator.device)).any())

    def any_media(self, kinds: set[str]) -> list[bool]:
        """Return which of MEDIA_KINDS any process has."""
        flags = tensor([[kind in kinds for kind in MEDIA_KINDS]], device=self.accelerator.device)
        return self.gather(flags).any(dim=0).tolist()

    def masked_mean(self, values: Tensor, mask: Tensor) -> float:
        """Return the mean over the tokens of all processes where the mask is 1; 0 where it is nowhere."""
        values = values.detach()
        sums = self.sum(stack([(values * mask).sum(), mask.sum().to(values.dtype)]))
        total, count = sums.tolist()
        return total / max(count, 1.0)
