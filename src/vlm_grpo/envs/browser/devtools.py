"""A running Chromium and its DevTools protocol over a pipe, without an open port or an additional package.

Pages are in `tab.py`. The browser has an empty environment, a temporary folder,
a memory limit for each of its processes and, if the system permits it, no network device.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import BinaryIO

from vlm_grpo.envs.browser.chromium import FLAGS, INSTALL, NO_SANDBOX, BrowserError, BrowserGone, check_browser, netless
from vlm_grpo.envs.browser.profiles import Profile
from vlm_grpo.records import JsonObject

logger = logging.getLogger(__name__)

# Moves the pipes to the file descriptors that Chromium expects, then executes the browser.
STARTER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
START_SECONDS = 60
WATCH_SECONDS = 0.1
WRITE_SECONDS = 10
JOIN_SECONDS = 5
PART = 2**16  # bytes per write
LONGEST_MESSAGE = 256 * 2**20  # bytes

Event = Callable[[str, JsonObject], None]  # (method, parameters)


class Chromium:
    """A running browser. Thread-safe; every call has its own time limit."""

    def __init__(self, *, memory: int = 1024, is_netless: bool = True) -> None:
        """Start a browser.

        Args:
            memory: memory limit in MiB of each of its processes; one that exceeds it is killed.
            is_netless: run it without network devices, if the system permits it.

        Raises:
            BrowserError: no browser is installed, or it does not start.
        """
        binary = check_browser()
        self.memory = memory
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[JsonObject]] = {}
        self._listeners: dict[str, Event] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._profile = Profile()
        self._errors = open(self._profile.folder / "errors.txt", "w+b")  # noqa: SIM115 - closed by close()
        self._start(binary, netless() if is_netless else ())

    def _start(self, binary: str, prefix: tuple[str, ...]) -> None:
        """Start the browser, without its own sandbox for root or if the system forbids it."""
        for sandbox in ([], [NO_SANDBOX]) if os.geteuid() else ([NO_SANDBOX],):
            self._spawn([*prefix, binary, *FLAGS, *sandbox, f"--user-data-dir={self._profile.folder}", "about:blank"])
            try:
                self.call("Browser.getVersion", seconds=START_SECONDS)
                return
            except (BrowserError, TimeoutError) as error:
                logger.warning("Chromium did not start with %s: %s", sandbox or "its own sandbox", error)
                self._kill()
        stderr = self._error_output()
        self.close()
        raise BrowserError(f"{binary} did not start: {stderr}; try another browser: {INSTALL}")

    def _error_output(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-600:].decode("utf-8", "replace").strip() or "no output"

    def _spawn(self, command: list[str]) -> None:
        theirs_in, ours_out = _high_pipe()
        ours_in, theirs_out = _high_pipe()
        starter = [sys.executable, "-I", "-S", "-c", STARTER, str(theirs_in), str(theirs_out)]
        path = os.environ.get("PATH", os.defpath)
        folder = str(self._profile.folder)
        self._process = subprocess.Popen(
            [*starter, *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={"PATH": path, "LANG": "C.UTF-8", "TZ": "UTC", "HOME": folder, "TMPDIR": folder},
            cwd=folder,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ended.clear()
        os.set_blocking(ours_out, False)
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._reader = threading.Thread(target=self._read, args=(os.fdopen(ours_in, "rb"),), daemon=True)
        self._reader.start()
        threading.Thread(target=self._watch, args=(self._process.pid,), daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Return whether the browser is running."""
        return not self._ended.is_set()

    @property
    def pid(self) -> int:
        """Return the process id of the browser; its pages are child processes."""
        return self._process.pid

    def listen(self, session: str, listener: Event | None) -> None:
        """Register a listener for a session's events. It runs in the reader thread and must not wait for responses."""
        if listener is None:
            self._listeners.pop(session, None)
        else:
            self._listeners[session] = listener

    def send(self, method: str, parameters: JsonObject | None = None, session: str = "") -> Future[JsonObject]:
        """Call a method of the protocol and return a future of its response.

        Raises:
            BrowserGone: it has ended.
        """
        message: JsonObject = {"id": next(self._numbers), "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        answer: Future[JsonObject] = Future()
        try:
            with self._lock:
                if self._ended.is_set():
                    raise BrowserGone("the browser has exited")
                self._pending[message["id"]] = answer
                _write(self._out, json.dumps(message).encode() + b"\0")
        except OSError as error:
            self._kill_processes()  # if it still runs, it hangs
            self._end("it does not respond")  # the reader thread may not have noticed yet
            raise BrowserGone(f"the browser does not respond: {error}") from error
        return answer

    def call(
        self, method: str, parameters: JsonObject | None = None, session: str = "", *, seconds: float
    ) -> JsonObject:
        """Call a method and wait for its response.

        Raises:
            BrowserError: the browser reports an error.
            BrowserGone: it has ended.
            TimeoutError: there is no response in time.
        """
        return self.send(method, parameters, session).result(max(0.0, seconds))

    def close(self) -> None:
        """Terminate the browser with all its processes, and remove its profile."""
        self._kill()
        self._errors.close()
        self._profile.close()

    def _kill(self) -> None:
        self._kill_processes()
        self._process.wait()
        self._reader.join(JOIN_SECONDS)
        self._end("it was closed")

    def _kill_processes(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, pipe: io.BufferedReader) -> None:
        with pipe, contextlib.suppress(OSError):
            for message in _messages(pipe):
                self._dispatch(json.loads(message))
        self._end("it crashed or was killed")

    def _dispatch(self, message: JsonObject) -> None:
        if "id" not in message:
            listener = self._listeners.get(message.get("sessionId", ""))
            if listener is not None:
                listener(message["method"], message.get("params", {}))
            return
        answer = self._pending.pop(message["id"], None)
        if answer is None:
            return
        if "error" in message:
            answer.set_exception(BrowserError(message["error"].get("message", "unknown error")))
        else:
            answer.set_result(message.get("result", {}))

    def _end(self, reason: str) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            waiting, self._pending = self._pending, {}
            with contextlib.suppress(OSError):
                self._out.close()
        for answer in waiting.values():
            answer.set_exception(BrowserGone(f"the browser has exited: {reason}"))

    def _watch(self, pid: int) -> None:
        """Kill processes that exceed the memory limit; a limit of the address space would not work for Chromium."""
        import psutil

        limit = self.memory * 2**20
        while not self._ended.wait(WATCH_SECONDS):
            with contextlib.suppress(psutil.Error):
                browser = psutil.Process(pid)
                for process in (browser, *browser.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        if process.memory_info().rss > limit:
                            logger.warning("a page used more than %d MiB; its process is killed", self.memory)
                            process.kill()


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are not 3 or 4, which Chromium uses itself."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


def _write(pipe: BinaryIO, content: bytes) -> None:
    """Write all content in parts.

    Raises:
        OSError: the other end is closed.
        TimeoutError: the other end does not read it.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    view = memoryview(content)
    while view:
        if not poll.poll(WRITE_SECONDS * 1000):
            raise TimeoutError(f"it has read nothing for {WRITE_SECONDS} seconds")
        view = view[os.write(pipe.fileno(), view[:PART]) :]


def _messages(pipe: io.BufferedReader) -> Iterator[bytes]:
    """Yield the messages; stop at one that exceeds the length limit."""
    parts: list[bytes] = []
    length = 0
    while chunk := pipe.read1(2**20):
        *ends, rest = chunk.split(b"\0")
        for end in ends:
            yield b"".join([*parts, end])
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > LONGEST_MESSAGE:
            return
