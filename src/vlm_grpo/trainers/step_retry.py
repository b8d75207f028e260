"""Repeats an optimizer step that ran out of memory in smaller parts; nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_grpo.shared_prefix.compat import SharedPrefixState
from vlm_grpo.shared_prefix.oom import ForwardSplitter

Metrics = dict[str, list[float]]


class StepStart(NamedTuple):
    """The current optimizer step, and TRL's number of its first micro-step."""

    optimizer_step: int
    micro_step: int


class StepRetry:
    """Repeats a training step when a packed forward or its backward runs out of memory.

    Args:
        shared_prefix: only packed forwards can be made smaller.
        splitter: makes them smaller.
        is_single_process: whether no other process waits for this one in a collective.
    """

    def __init__(self, shared_prefix: SharedPrefixState, splitter: ForwardSplitter, is_single_process: bool) -> None:
        self.shared_prefix, self.splitter, self.is_single_process = shared_prefix, splitter, is_single_process
        self.start = StepStart(-1, 0)
        self.is_retry = False
        self.loss_step = -1  # micro-step whose loss was started last
        self._num_rows = 0
        self._metrics_before_loss: Metrics = {}

    def begin_loss(self, micro_step: int, num_rows: int, metrics: Metrics) -> None:
        """Save what a retry starts from; called at the start of the loss of a training micro-step."""
        self._num_rows = num_rows
        if not self.is_retry:
            self.loss_step = micro_step
            self._metrics_before_loss = {name: [*values] for name, values in metrics.items()}

    def run(
        self,
        run_micro_step: Callable[[int], Tensor],
        start: StepStart,
        metrics: Callable[[], Metrics],
        zero_grad: Callable[[], None],
    ) -> Tensor:
        """Return the loss of a micro-step, after a retry if memory ran out.

        An interrupted backward leaves a partial gradient: the optimizer step is repeated from its first micro-step,
        whose rollout is in the buffer, with the metrics reset.

        Args:
            run_micro_step: runs the micro-step of a number.
            start: the optimizer step and the micro-step.
            metrics: returns those of training, which a retry resets.
            zero_grad: clears the partial gradient.

        Raises:
            torch.OutOfMemoryError: rows are forwarded one by one already, or other processes wait for this one.
        """
        if self.start.optimizer_step != start.optimizer_step:
            self.start = start
        first, last = start.micro_step, start.micro_step
        while True:
            try:
                return self._run_micro_steps(run_micro_step, range(first, last + 1), metrics)
            except torch.OutOfMemoryError as error:
                is_packed = self.shared_prefix.is_on and self.shared_prefix.is_checked and self.loss_step == last
                if not (is_packed and self.is_single_process):
                    raise
                self.splitter.halve(self._num_rows, error)
            zero_grad()
            first, self.is_retry = self.start.micro_step, True

    def _run_micro_steps(
        self, run_micro_step: Callable[[int], Tensor], steps: range, metrics: Callable[[], Metrics]
    ) -> Tensor:
        for step in steps:
            if self.is_retry:
                current = metrics()
                current.clear()
                current.update({name: [*values] for name, values in self._metrics_before_loss.items()})
            loss = run_micro_step(step)
        self.is_retry = False
        return loss
