"""SIGTERM ends a training at the next optimizer step, after its checkpoint is written: machines that are taken away.

transformers' own callback for this writes while a step is under way, under the number of the step before: the resumed
run has a rollout that is one step ahead. Here the checkpoint is one like every other, between two steps.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

STATUS = 128 + signal.SIGTERM  # what shells and schedulers see of a process that SIGTERM ended
REPEATED = 5.0  # seconds in which a second SIGTERM is taken for the first: a launcher passes on what all were sent
NOTE = b"SIGTERM: a checkpoint is written after this step, then the run ends; send it again to end at once\n"


class Preempted(SystemExit):
    """The run was stopped by SIGTERM, and its checkpoint is written; ends a script with status 143."""

    def __init__(self, step: int) -> None:
        super().__init__(STATUS)
        self.step = step


class Preemption(TrainerCallback):
    """Stops a training after SIGTERM, on all processes after the same step, whichever of them got the signal.

    Args:
        accelerator: of the trainer.
        is_wanted: whether to; otherwise SIGTERM is left to whoever handles it, and ends the process by default.
    """

    def __init__(self, accelerator: Accelerator, is_wanted: bool) -> None:
        self.accelerator = accelerator
        self.is_wanted = is_wanted
        self._is_listening = False
        self._is_stopping = False
        self._since: float | None = None  # when SIGTERM came
        self._pid = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM in the block; Python lets the main thread alone do so.

        After a stop the handler stays, so that a signal that is sent twice does not kill a process on its way out.

        Raises:
            Preempted: from the training in the block.
        """
        if not self.is_wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_listening, self._is_stopping, self._since, self._pid = True, False, None, os.getpid()
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            self._is_listening = False
            if not self._is_stopping:
                signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; nothing else is safe here. A process that was forked from this one ends as ever."""
        now = time.monotonic()
        if os.getpid() != self._pid or (self._since is not None and now - self._since > REPEATED):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._since is None:
            self._since = now
            if self.accelerator.is_main_process:
                os.write(2, NOTE)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Let the checkpoint be written now, and stop. An evaluation that is due is left out: time is short."""
        if self._is_listening and not self._is_stopping and self._is_any_signalled():
            self._is_stopping = True
            control.should_log, control.should_evaluate, control.should_save = True, False, True
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Do not wait for another step where the signal came during an evaluation, after which checkpoints are due."""
        if state.global_step:
            self.on_step_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Leave, before the end of a training is celebrated: the checkpoint is written.

        Raises:
            Preempted: after SIGTERM.
        """
        if self._is_stopping:
            self.accelerator.wait_for_everyone()  # a launcher kills the others when one has ended, also while it writes
            raise Preempted(state.global_step)

    def _is_any_signalled(self) -> bool:
        here = torch.tensor([self._since is not None], device=self.accelerator.device)
        return bool(self.accelerator.gather(here).any())


def check_preemption(args: Any) -> None:
    """Refuse checkpoints for SIGTERM from which no run can go on.

    Raises:
        ValueError: says which flags do not go together.
    """
    if args.enable_jit_checkpoint and args.save_only_model:
        raise ValueError(
            "--enable_jit_checkpoint writes a checkpoint to go on from, and --save_only_model leaves out what that "
            "needs; leave one of them out"
        )
