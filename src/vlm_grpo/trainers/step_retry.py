"""A training step that ran out of memory is taken again in smaller parts; nothing is lost or counted twice."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_grpo.shared_prefix.oom import ForwardSplitter


class StepStart(NamedTuple):
    """The optimizer step that is being made, and TRL's number of its first micro-step."""

    optimizer_step: int
    micro_step: int


class StepRepeating:
    """Mixin of `PromptSharing`: what `training_step` does when a packed forward or its backward has no memory left."""

    def _start_repeating(self) -> None:
        self._cutting = ForwardSplitter()
        self._begun = StepStart(-1, 0)
        self._is_repeating = False
        self._loss_step = -1
        self._metrics_before_loss: dict[str, list[float]] = {}

    @property
    def _is_alone(self) -> bool:
        """Whether no other process waits for this one in a collective."""
        return self.accelerator.num_processes == 1 and not self.is_deepspeed_enabled and not self.is_fsdp_enabled

    def _begin_loss(self) -> None:
        """Remember what a repetition has to start from."""
        if self.model.training and not self._is_repeating:
            self._loss_step = self._step
            self._metrics_before_loss = {name: [*values] for name, values in self._metrics["train"].items()}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's. A backward that stops in the middle leaves half a gradient: it is made anew from its first micro-step.

        Raises:
            torch.OutOfMemoryError: rows go one by one already, or other processes wait for this one.
        """
        if self._begun.optimizer_step != self.state.global_step:
            self._begun = StepStart(self.state.global_step, self._step)
        first, last = self._step, self._step
        while True:
            try:
                return self._micro_steps(range(first, last + 1), model, inputs, num_items_in_batch)
            except torch.OutOfMemoryError as error:
                in_packed_loss = self._sharing.is_on and self._sharing.is_checked and self._loss_step == last
                if not (in_packed_loss and self._is_alone):
                    raise
                self._cutting.halve(len(self._samples), error)
            self.model.zero_grad()
            first, self._is_repeating = self._begun.micro_step, True

    def _micro_steps(self, steps: range, *args: Any) -> Tensor:
        """The loss of the last step. Repeated ones find their rollout in the buffer, and their metrics counted."""
        for step in steps:
            if self._is_repeating:
                self._step = step
                kept = {name: [*values] for name, values in self._metrics_before_loss.items()}
                self._metrics["train"] = defaultdict(list, kept)
            loss = super().training_step(*args)
        self._is_repeating = False
        return loss
