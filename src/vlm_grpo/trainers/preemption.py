"""SIGTERM ends a training after the next optimizer step and its checkpoint, for preemptible machines.

transformers' own callback writes during a step, under the number of the previous step: the resumed run has a rollout
that is one step ahead. Here the checkpoint is an ordinary one, between two steps.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


EXIT_STATUS = 128 + signal.SIGTERM  # the status that shells and schedulers see after SIGTERM
REPEAT_WINDOW = (
    5.0  # seconds in which a second SIGTERM counts as the first: a launcher forwards the signal that all received
)
MESSAGE = b"SIGTERM: a checkpoint is written after this step, then the run ends; send it again to end at once\n"


class Preempted(SystemExit):
    """The run was stopped by SIGTERM, and its checkpoint is written; ends a script with status 143."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_STATUS)
        self.step = step


class Preemption(TrainerCallback):
    """Stops a training after SIGTERM, on all processes after the same step, whichever of them got the signal.

    Args:
        accelerator: of the trainer.
        is_enabled: otherwise SIGTERM keeps its handler, and ends the process by default.
    """

    def __init__(self, accelerator: Accelerator, is_enabled: bool) -> None:
        self.accelerator = accelerator
        self.is_enabled = is_enabled
        self._is_stopping = False
        self._signalled_at: float | None = None  # when SIGTERM came
        self._pid = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM in the block; Python lets the main thread alone do so.

        After a stop the handler stays, so that a signal that is sent twice does not kill a process on its way out.

        Raises:
            Preempted: from the training in the block.
        """
        if not self.is_enabled or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_stopping, self._signalled_at, self._pid = False, None, os.getpid()
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            if not self._is_stopping:
                signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; nothing else is safe here. A process that was forked from this one ends as usual."""
        now = time.monotonic()
        if os.getpid() != self._pid or (self._signalled_at is not None and now - self._signalled_at > REPEAT_WINDOW):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._signalled_at is None:
            self._signalled_at = now
            if self.accelerator.is_main_process:
                os.write(2, MESSAGE)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        """Request a checkpoint and the end of training. An evaluation that is due is skipped: time is short."""
        if self.is_enabled and not self._is_stopping and self._is_any_signalled():
            self._is_stopping = True
            control.should_log, control.should_evaluate, control.should_save = True, False, True
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        """Stop without another step where the signal came during an evaluation."""
        if state.global_step:
            self.on_step_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        """Leave the training loop once the checkpoint is written.

        Raises:
            Preempted: after SIGTERM.
        """
        if self._is_stopping:
            self.accelerator.wait_for_everyone()  # a launcher kills the others when one has ended, also while it writes
            raise Preempted(state.global_step)

    def _is_any_signalled(self) -> bool:
        here = torch.tensor([self._signalled_at is not None], device=self.accelerator.device)
        return bool(self.accelerator.gather(here).any())


def check_preemption(args: Any) -> None:
    """Check that the checkpoint written at SIGTERM can be resumed from.

    Raises:
        ValueError: says which flags do not go together.
    """
    if args.enable_jit_checkpoint and args.save_only_model:
        raise ValueError(
            "--enable_jit_checkpoint writes a checkpoint to resume from, and --save_only_model leaves out what that "
            "needs; leave one of them out"
        )
