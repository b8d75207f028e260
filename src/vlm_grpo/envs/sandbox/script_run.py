"""One run of a script from the parent's side: request, reply, limits.

All output is bytes from an untrusted program: they are counted while being read, and not decoded here.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import NamedTuple

START_LIMIT, KILL_LIMIT = 60.0, 10.0  # seconds
CHUNK = 2**18  # bytes
STARTED = b"S"
REPORT = struct.Struct("id")  # wait status, CPU seconds


class ScriptLimits(NamedTuple):
    """Limits of a run: seconds, bytes of the answer, bytes kept of each output, bytes printed before it is stopped."""

    seconds: float
    answer: int
    output: int
    loud: int


class ScriptOutcome(NamedTuple):
    """The outcome of a run; `status` (of wait) and `cpu` (seconds) are None if the supervisor did not report them."""

    answer: bytes
    out: bytes
    err: bytes
    seconds: float
    status: int | None
    cpu: float
    stopped: str  # "time" or "output" if this side stopped it

    @property
    def is_started(self) -> bool:
        """Return whether the script was started; otherwise the sandbox itself failed."""
        return self.answer.startswith(STARTED)


class Worker:
    """An idle process for one script: four pipes, and the socket of the supervisor that can kill it."""

    def __init__(self) -> None:
        request, out, err, answer = (os.pipe() for _ in range(4))
        self.request, self.out, self.err, self.answer = request[1], out[0], err[0], answer[0]
        self.their_files = [request[0], out[1], err[1], answer[1]]
        self.control, self.theirs = socket.socketpair()
        for file in self.files:
            os.set_blocking(file, False)

    @property
    def files(self) -> list[int]:
        return [self.request, self.out, self.err, self.answer]

    def hand_over(self, starter: socket.socket) -> None:
        """Send the other ends to the starter, which forks the worker.

        Raises:
            OSError: the starter has exited.
        """
        with self.theirs:
            try:
                socket.send_fds(starter, [b"W"], [*self.their_files, self.theirs.fileno()])
            finally:
                for file in self.their_files:
                    os.close(file)

    def stop(self) -> None:
        """Tell the supervisor to kill the process, which also works if a fork has a copy of the socket."""
        self.control.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kill the process, if it is running, and close all its files."""
        with self.control, contextlib.suppress(OSError):  # its supervisor has exited
            self.stop()
        for file in self.files:
            os.close(file)


class ScriptRun:
    """The communication with a worker. The time limit starts when the script starts."""

    def __init__(self, worker: Worker, payload: bytes, caps: ScriptLimits) -> None:
        self.worker, self.caps, self.unsent = worker, caps, memoryview(payload)
        limits = {worker.out: caps.output, worker.err: caps.output, worker.answer: caps.answer}
        self.limits, self.buffers = limits, {file: bytearray() for file in limits}
        self.surplus = 0  # bytes read but not kept
        self.stopped, self.is_started = "", False
        self.began = time.monotonic()
        self.deadline = self.began + START_LIMIT
        self.report: bytes | None = None
        self.poller = select.poll()
        for file in (*limits, worker.control.fileno()):
            self.poller.register(file, select.POLLIN)
        self.poller.register(worker.request, select.POLLOUT)

    def wait(self) -> ScriptOutcome:
        """Wait until the process has exited; stop it if it exceeds the time or output limit."""
        while self.report is None:
            now = time.monotonic()
            if now >= self.deadline and self.stopped:
                break  # no response: supervisor and worker have been killed
            if now >= self.deadline:
                self._stop("time")
            self._exchange()
        seconds = time.monotonic() - self.began
        for file in self.limits:
            while self._read(file):
                pass
        answer, out, err = (
            bytes(self.buffers[file]) for file in (self.worker.answer, self.worker.out, self.worker.err)
        )
        report = self.report if self.report is not None and len(self.report) == REPORT.size else None
        status, cpu = (None, 0.0) if report is None else REPORT.unpack(report)
        return ScriptOutcome(answer, out, err, seconds, status, cpu, self.stopped)

    def _exchange(self) -> None:
        for file, _ in self.poller.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
            if file == self.worker.request:
                self._write()
            elif file == self.worker.control.fileno():
                self.report = self.worker.control.recv(REPORT.size)
            elif not self._read(file):
                self.poller.unregister(file)
        if not self.is_started and self.buffers[self.worker.answer].startswith(STARTED):
            self.is_started, self.began = True, time.monotonic()
            self.deadline = self.began + self.caps.seconds
        printed = sum(len(self.buffers[file]) for file in (self.worker.out, self.worker.err))
        if self.surplus + printed > self.caps.loud and not self.stopped:
            self._stop("output")

    def _stop(self, why: str) -> None:
        self.stopped, self.deadline = why, time.monotonic() + KILL_LIMIT
        with contextlib.suppress(OSError):  # it may have exited in the meantime
            self.worker.stop()

    def _write(self) -> None:
        try:
            self.unsent = self.unsent[os.write(self.worker.request, self.unsent[:CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = self.unsent[:0]  # it exited before reading; see its report
        if not self.unsent:
            self.poller.unregister(self.worker.request)

    def _read(self, file: int) -> bool:
        """Read the available bytes; return False if there are none."""
        try:
            data = os.read(file, CHUNK)
        except BlockingIOError:
            return False
        buffer = self.buffers[file]
        room = self.limits[file] - len(buffer)
        buffer += data[:room]
        self.surplus += max(0, len(data) - room)
        return bool(data)
