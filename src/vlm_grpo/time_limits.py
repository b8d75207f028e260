"""Time limits for user code (rewards and environments), with errors that name the code that failed.

A call that hangs would block a run forever. Calls run in the caller's thread, as without a limit (gradients, CUDA
devices and event loops belong to threads); another thread watches the clock. That warns first, then interrupts the
call by a signal at the limit, so that the error is raised where the call was made; a launcher then terminates the other
processes. If a signal does not interrupt the call, e.g. in a library's loop, the process exits with the same message.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias, TypeVar, cast

DEFAULT_TIME_LIMIT = 600.0  # seconds
REWARD_FLAG = "--reward_time_limit"
WARN_AFTER = 60.0  # seconds until a warning
GRACE_SECONDS = 20.0  # seconds between the interrupt and the end of the process
COROUTINE_GRACE_SECONDS = 5.0  # seconds after the limit until a coroutine is assumed to block its loop

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., object])
SignalHandler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"  # as signal.signal takes it

logger = logging.getLogger(__name__)


class TimeLimitError(RuntimeError):
    """User code exceeded its time limit."""


class _Interrupt(BaseException):
    """Raised inside a call that takes too long; `except Exception` does not catch it."""


class Deadline:
    """The deadline of one call. `what` describes the call, and `restart` starts the next one."""

    def __init__(self, what: Callable[[], str], seconds: float, flag: str) -> None:
        self.what = what
        self.seconds = seconds
        self.flag = flag
        self.thread = threading.current_thread()
        self.is_expired = False
        self.message = ""
        self.started = time.monotonic()
        self._is_over = threading.Event()

    def restart(self, what: Callable[[], str]) -> None:
        """Restart, for another call."""
        self.what, self.started = what, time.monotonic()

    @property
    def is_over(self) -> bool:
        """Return whether the call has returned."""
        return self._is_over.is_set()

    def stop(self) -> None:
        """Stop watching."""
        self._is_over.set()

    def watch(self) -> None:
        """Warn once, interrupt at the limit, and exit if that does not help. Runs in its own thread."""
        while (left := self.started + self.seconds - time.monotonic()) > 0:
            word = self.started + WARN_AFTER - time.monotonic()
            if word <= 0:
                self._mention()
            if self._is_over.wait(min(left, word if word > 0 else left)):
                return
        self.message = _timeout_message(self.what(), self.seconds, self.flag)
        self.is_expired = True
        self._interrupt()
        if not self._is_over.wait(GRACE_SECONDS):
            print(f"{self.message}; it cannot be interrupted, so the process exits", file=sys.stderr, flush=True)
            os._exit(1)

    def _mention(self) -> None:
        """Warn about a call that has not returned for some time; once per reward or environment."""
        name, passed = self.what().partition(" on ")[0], time.monotonic() - self.started
        if name not in _warned_about:
            _warned_about.add(name)
            logger.warning(
                "%s: has not returned for %.0f s; the run ends at %g s (%s)",
                *(self.what(), passed, self.seconds, self.flag),
            )

    def _interrupt(self) -> None:
        """Raise _Interrupt in the main thread if it made the call, else KeyboardInterrupt, and print the reason."""
        is_main = self.thread is threading.main_thread()
        if is_main and getattr(signal.getsignal(signal.SIGALRM), "clock", None) is not None:
            _kill(self.thread, signal.SIGALRM)
            return
        logger.error("%s", self.message)
        _kill(threading.main_thread(), signal.SIGINT)


class _SignalHandler:
    """Interrupts the main thread's call at its limit; `signal.getsignal` returns this object, with the clock."""

    def __init__(self, clock: Deadline) -> None:
        self.clock = clock

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.clock.is_expired and not self.clock.is_over:
            raise _Interrupt


def _kill(thread: threading.Thread, number: signal.Signals) -> None:
    """Send a signal to a running thread."""
    if thread.ident is not None:
        signal.pthread_kill(thread.ident, number)


_deadlines = threading.local()
_warned_about: set[str] = set()


@contextmanager
def time_limit(what: Callable[[], str], seconds: float, flag: str = REWARD_FLAG) -> Iterator[Deadline | None]:
    """Limit the time of the calls inside the block.

    Args:
        what: returns a description of the code and the row.
        seconds: limit of each call; 0 means no limit.
        flag: the flag that sets the limit.

    Raises:
        TimeLimitError: a call exceeded the limit.
    """
    if seconds <= 0:
        yield None
        return
    clock = Deadline(what, seconds, flag)
    outer = getattr(_deadlines, "current", None)
    _deadlines.current = clock
    before = _install_signal_handler(clock)
    threading.Thread(target=clock.watch, daemon=True, name="time limit").start()
    try:
        yield clock
    except (_Interrupt, KeyboardInterrupt):
        if not clock.is_expired:
            raise
    finally:
        clock.stop()
        _deadlines.current = outer
        if before is not None:
            signal.signal(signal.SIGALRM, before)
    if clock.is_expired:  # also if the call caught the interrupt
        raise TimeLimitError(clock.message)


def _install_signal_handler(clock: Deadline) -> SignalHandler:
    """Let SIGALRM interrupt this thread, if it is the main one, and return what it did before; None elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGALRM, _SignalHandler(clock))


def exit_status_after_hang() -> int:
    """Return the exit status of a run stopped by hanging code; running threads will not prevent the exit."""
    threading.Thread(target=_exit_after_main_thread, daemon=True, name="end").start()
    return 1


def _exit_after_main_thread() -> None:
    """Exit when the main thread has finished, even if other threads that Python would wait for have not."""
    while threading.main_thread().is_alive():
        time.sleep(0.5)
    time.sleep(COROUTINE_GRACE_SECONDS)
    os._exit(1)


def restart_deadline(what: Callable[[], str]) -> None:
    """Restart the limit for the next of several calls; no effect without a limit."""
    clock = getattr(_deadlines, "current", None)
    if clock is not None:
        clock.restart(what)


def with_time_limit(function: Function, seconds: float) -> Function:
    """Return a batch reward, or a coroutine function, with a time limit in seconds for each call."""
    name = getattr(function, "__name__", type(function).__name__)

    async def await_within_limit(*arguments: object, **columns: object) -> object:
        running = cast("Awaitable[object]", function(*arguments, **columns))
        return await _await_within(running, f"reward {name!r}{describe_rows(columns)}", seconds)

    def call_within_limit(*arguments: object, **columns: object) -> object:
        with time_limit(lambda: f"reward {name!r}{describe_rows(columns)}", seconds):
            return function(*arguments, **columns)

    within_limit: Callable[..., object] = await_within_limit if is_coroutine_function(function) else call_within_limit
    functools.update_wrapper(within_limit, function, updated=())
    within_limit.__name__ = name
    if hasattr(function, "asynchronous"):
        vars(within_limit)["asynchronous"] = with_time_limit(function.asynchronous, seconds)

    return cast("Function", within_limit)


def is_coroutine_function(function: object) -> bool:
    """Return whether calling a function or object returns a coroutine."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


async def _await_within(running: Awaitable[Result], what: str, seconds: float) -> Result:
    """Await a coroutine with a time limit; one that blocks the loop is stopped by the clock's thread.

    Raises:
        TimeLimitError: it exceeds the limit.
    """
    if seconds <= 0:
        return await running
    started = time.monotonic()
    with time_limit(lambda: what, seconds + COROUTINE_GRACE_SECONDS) as clock:
        try:
            return await asyncio.wait_for(running, seconds)
        except asyncio.TimeoutError as error:  # noqa: UP041 - another class before Python 3.11
            if time.monotonic() - started < seconds:
                raise  # its own
            flag = REWARD_FLAG if clock is None else clock.flag
            raise TimeLimitError(_timeout_message(what, seconds, flag)) from error


def _timeout_message(what: str, seconds: float, flag: str) -> str:
    return f"{what}: has not returned for {seconds:g} s ({flag}; 0 disables the limit)"


def describe_rows(columns: Mapping[str, object]) -> str:
    """Return the rows of a batch for an error message: ` on rows a.jsonl:1 to a.jsonl:4`."""
    where = columns.get("where") or columns.get("id")
    if not isinstance(where, list | tuple) or not where:
        return ""
    first, last = where[0], where[-1]
    return f" on row {first}" if first == last else f" on rows {first} to {last}"


def call_method(owner: object, method: str, row: str, seconds: float, *arguments: object, **options: object) -> Any:
    """Call a method of an environment and return its result; a coroutine is run to completion.

    Args:
        row: location or id of the episode's row.
        seconds: time limit; 0 means no limit.

    Raises:
        RuntimeError: the method raised or tried to exit; the message names environment, method and row.
        TimeLimitError: it exceeded the limit.
    """
    place = describe_method_call(owner, method, row)
    with time_limit(lambda: place, seconds):
        try:
            value = getattr(owner, method)(*arguments, **options)
            return asyncio.run(value) if inspect.iscoroutine(value) else value
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"{place}: {type(error).__name__}: {error}") from error


async def await_method(owner: object, method: str, row: str, seconds: float) -> Any:
    """Await a coroutine method of an environment; limits and errors as in `call_method`."""
    place = describe_method_call(owner, method, row)
    try:
        return await _await_within(getattr(owner, method)(), place, seconds)
    except TimeLimitError:
        raise
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"{place}: {type(error).__name__}: {error}") from error


def describe_method_call(owner: object, method: str, row: str) -> str:
    """Describe a method of an environment and its row for an error."""
    return f"environment {type(owner).__name__!r}, {method}()" + (f" on row {row}" if row else "")


def describe_row(row: Mapping[str, object]) -> str:
    """Describe a row for an error: its location, else its id or number."""
    names: Sequence[str] = ("where", "id", "episode")
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), "")
