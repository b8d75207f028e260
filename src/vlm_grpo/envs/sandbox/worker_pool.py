"""A pool of idle workers, so that scripts do not wait for Python to start."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from vlm_grpo.envs.sandbox.process import Starter
from vlm_grpo.envs.sandbox.script_run import ScriptLimits, ScriptOutcome, ScriptRun, Worker

MAX_ATTEMPTS = 2  # an idle worker may have been killed, for instance by the OOM killer


class IdleWorker(NamedTuple):
    """An idle worker, with its own starter if it has one."""

    worker: Worker
    starter: Starter | None

    def close(self) -> None:
        self.worker.close()
        if self.starter:
            self.starter.close()


class WorkerPool:
    """A pool of `size` idle workers; each runs one script and is replaced."""

    def __init__(self, backend: str, settings: Mapping[str, object], size: int) -> None:
        self.backend, self.settings, self.size = backend, settings, size
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.idle: deque[IdleWorker] = deque()
        self.starter: Starter | None = None

    def run_script(self, payload: bytes, caps: ScriptLimits) -> ScriptOutcome:
        """Run a script on an idle worker.

        Raises:
            RuntimeError: the script did not start; the message has the output of the processes.
        """
        for tried in range(MAX_ATTEMPTS):
            waiting = self._take()
            try:
                ending = ScriptRun(waiting.worker, payload, caps).wait()
                words = "" if ending.is_started else self._last_words(waiting)
            finally:
                waiting.close()
            if ending.is_started:
                if tried:
                    self.fill()
                return ending
            self.close()  # all idle workers may have been killed
        answer_text = ending.answer[1:].decode(errors="replace")
        raise RuntimeError(answer_text or words or f"a worker exited before it started (status {ending.status})")

    def fill(self) -> None:
        """Start the missing workers."""
        with self.lock:
            while len(self.idle) < self.size:
                self.idle.append(self._start())

    def close(self) -> None:
        """Terminate idle workers and the starter; in a fork of their owner, leave them running."""
        if os.getpid() != self.process:
            return
        with self.lock:
            while self.idle:
                self.idle.popleft().close()
            if self.starter:
                self.starter.close()
            self.starter = None

    def _take(self) -> IdleWorker:
        with self.lock:
            self.idle.append(self._start())
            return self.idle.popleft()

    def _start(self) -> IdleWorker:
        if self.backend == "bubblewrap_each":
            starter = Starter(self.backend, self.settings)
            return IdleWorker(starter.worker(), starter)
        for _ in range(MAX_ATTEMPTS):
            if self.starter is None:
                self.starter = Starter(self.backend, self.settings)
            try:
                return IdleWorker(self.starter.worker(), None)
            except OSError as error:
                words = f"{self.starter.last_words()} ({error})"
                self.starter.close()
                self.starter = None
        raise RuntimeError(words)

    def _last_words(self, waiting: IdleWorker) -> str:
        with self.lock:
            starter = waiting.starter or self.starter
            return starter.last_words() if starter else ""
