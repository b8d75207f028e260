"""Mathematical equivalence of expressions by math-verify, in worker processes with a time limit.

Symbolic simplification of a short text can take minutes. A worker that exceeds the limit is killed and replaced, its
answer counts as not equal, and the other answers of the batch do not wait for it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import IO

logger = logging.getLogger(__name__)

TIME_LIMIT = 5.0  # seconds for one pair
START_TIME_LIMIT = 120.0  # seconds until a new worker has loaded its libraries
MAX_LENGTH = 4000  # characters; longer answers are not verified
SYMBOLS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{1,2}(?![A-Za-z])")  # longer runs are words or function names
WORKERS = max(1, min(4, os.cpu_count() or 1))


def is_equivalent(truth: str, answer: str) -> bool:
    """Return whether the answer equals the truth (LaTeX, expression, set, interval); False on a timeout."""
    return verify_all([(truth, answer)])[0]


def verify_all(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Return `is_equivalent` for many (truth, answer) pairs at once; recent results are cached."""
    cache = _cache()
    missing = [pair for pair in dict.fromkeys(pairs) if pair not in cache]
    if missing:
        workers = _idle_workers(os.getpid())
        with ThreadPoolExecutor(min(WORKERS, len(missing))) as threads:
            results = dict(zip(missing, threads.map(lambda pair: _verify(pair, workers), missing), strict=True))
        if len(cache) > 100_000:
            cache.clear()
        cache.update(results)
    return [cache[pair] for pair in pairs]


@lru_cache(maxsize=1)
def _cache() -> dict[tuple[str, str], bool]:
    return {}


def _verify(pair: tuple[str, str], workers: queue.LifoQueue[_Worker]) -> bool:
    """Return the result for one pair, from the first idle worker."""
    if len(pair[1]) > MAX_LENGTH:
        return False
    worker = workers.get()
    try:
        return worker.verify(pair)
    finally:
        workers.put(worker)


@lru_cache(maxsize=1)
def _idle_workers(process: int) -> queue.LifoQueue[_Worker]:
    """Return the workers of this process; a forked process starts its own."""
    workers: queue.LifoQueue[_Worker] = queue.LifoQueue()  # last in, first out: occasional pairs reuse one worker
    for _ in range(WORKERS):
        workers.put(_Worker())
    return workers


class _Worker:
    """A worker process that answers each line with one line."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def verify(self, pair: tuple[str, str]) -> bool:
        if self.process is None or self.process.poll() is not None:
            self.process = self.start()
        _pipe(self.process.stdin).write(json.dumps(pair).encode() + b"\n")
        line = self.read(self.process, TIME_LIMIT)
        if line is None:
            self.stop()
            logger.warning("math: no result within %g s for the answer %.80r; scored as wrong", TIME_LIMIT, pair[1])
        return line == b"true\n"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process and return it once its libraries are loaded, so that the limit covers the pair alone.

        Raises:
            RuntimeError: the process ended or did not become ready in time.
        """
        # -c instead of -m: a user's own main module is never imported again
        command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {SERVE}"]
        process = self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        atexit.register(self.stop)
        if self.read(process, START_TIME_LIMIT) != b"ready\n":
            process.kill()
            stderr = _pipe(process.stderr).read().decode(errors="replace").strip()
            raise RuntimeError(
                f"math: the process for math-verify did not start: {stderr[-500:] or 'it wrote nothing'}"
            )
        return process

    @staticmethod
    def read(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """Return the next line; None on a timeout or if the process has ended."""
        line, end, stdout = b"", time.monotonic() + seconds, _pipe(process.stdout)
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(stdout.fileno(), 64) if ready else b""
            if not piece:
                return None
            line += piece
        return line

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """Return a stream of a process that was started with pipes."""
    if stream is None:
        raise RuntimeError("math: the process for math-verify has no pipe")
    return stream


SERVE = "from vlm_grpo.rewards.math_verify import serve; serve()"


def serve() -> None:
    """Answer each line of standard input ([truth, answer] as JSON) with true or false."""
    logging.disable(logging.CRITICAL)  # math-verify's warnings about answers that it cannot parse
    verify_pair(r"\frac{1}{2}", "0.5")  # load everything before the time limit of the first pair starts
    _write_line("ready")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads this pipe any more; it would block when full
    for line in sys.stdin:
        truth, answer = json.loads(line)
        _write_line(json.dumps(verify_pair(truth, answer)))


def _write_line(word: str) -> None:
    stdout = sys.__stdout__ or sys.stdout
    stdout.write(word + "\n")
    stdout.flush()


def verify_pair(truth: str, answer: str) -> bool:
    """Return math-verify's result for one pair, in this process and without a time limit.

    math-verify treats X as x; a pair that writes a symbol in different cases is not equal here.
    """
    from math_verify import parse, verify

    if _symbols_differ_in_case(truth, answer):
        return False
    gold, predicted = (parse(_dollars(text), parsing_timeout=None) for text in (truth, answer))
    return bool(verify(gold, predicted, timeout_seconds=None))


def _symbols_differ_in_case(truth: str, answer: str) -> bool:
    one, other = ({letter for run in SYMBOLS.findall(text) for letter in run} for text in (truth, answer))
    return any(letter.swapcase() in other and letter not in other for letter in one)


def _dollars(value: str) -> str:
    """Return the value as inline LaTeX, which math-verify parses first."""
    return value if "$" in value or "\\boxed" in value else f"${value}$"
