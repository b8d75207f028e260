"""Workers that wait for a script, so that none waits for Python to start."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from vlm_grpo.envs.sandbox.process import Starter
from vlm_grpo.envs.sandbox.script_run import ScriptLimits, ScriptOutcome, ScriptRun, Worker

MAX_ATTEMPTS = 2  # a worker that waited may have been killed meanwhile, by a machine without memory say


class IdleWorker(NamedTuple):
    """A worker, and the starter that ends with it where each has its own."""

    worker: Worker
    own: Starter | None

    def close(self) -> None:
        self.worker.close()
        if self.own:
            self.own.close()


class WorkerPool:
    """`size` workers that wait; whoever takes one has another started. One worker runs one script."""

    def __init__(self, backend: str, settings: Mapping[str, Any], size: int) -> None:
        self.backend, self.settings, self.size = backend, settings, size
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.ready: deque[IdleWorker] = deque()
        self.starter: Starter | None = None

    def play(self, payload: bytes, caps: ScriptLimits) -> ScriptOutcome:
        """Run a script on a worker that waits.

        Raises:
            RuntimeError: the script was not reached; says what the processes said.
        """
        for tried in range(MAX_ATTEMPTS):
            waiting = self._take()
            try:
                ending = ScriptRun(waiting.worker, payload, caps).ending()
                words = "" if ending.is_started else self._last_words(waiting)
            finally:
                waiting.close()
            if ending.is_started:
                if tried:
                    self.fill()
                return ending
            self.close()  # what killed one may have killed all that wait
        said = ending.answer[1:].decode(errors="replace")
        raise RuntimeError(said or words or f"a worker ended before it began (status {ending.status})")

    def fill(self) -> None:
        """Start as many workers as are missing."""
        with self.lock:
            while len(self.ready) < self.size:
                self.ready.append(self._start())

    def close(self) -> None:
        """End the workers that wait, and the starter. A fork of the process that has them leaves them alone."""
        if os.getpid() != self.process:
            return
        with self.lock:
            while self.ready:
                self.ready.popleft().close()
            if self.starter:
                self.starter.close()
            self.starter = None

    def _take(self) -> IdleWorker:
        with self.lock:
            self.ready.append(self._start())
            return self.ready.popleft()

    def _start(self) -> IdleWorker:
        if self.backend == "bubblewrap_each":
            own = Starter(self.backend, self.settings)
            return IdleWorker(own.worker(), own)
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
            starter = waiting.own or self.starter
            return starter.last_words() if starter else ""
