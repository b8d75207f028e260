"""A sandbox for Python code that a model wrote: one image in, one image and text out. Linux only.

```python
sandbox = Sandbox(SandboxSettings(time_limit=5.0))
result = sandbox.run("result = image.rotate(90)", image)   # result.status, .stdout, .stderr, .image, .seconds
```

Every script runs in its own process, started in advance, with numpy and Pillow imported. Its restrictions:

| | bubblewrap, bubblewrap_each, namespaces | process |
|---|---|---|
| network | none: namespace of its own, and no sockets | no sockets |
| other processes | unseen: namespace of its own, own user id (as root) | no signals, no ptrace; own user id (as root) |
| files | Python and its libraries to read, /script-work to write | the same by Landlock, but names can be asked for |
| disk | /script-work is memory, `disk_mb` in all | `disk_mb` for each file, no limit in all |
| memory, CPU, open files | limits of the kernel | the same |
| new processes, programs | none | none |
| threads | `threads` | `threads` as root; else only memory limits them |

Sockets, new processes, signals and so on are denied by a filter of system calls (seccomp), which every backend has;
without it nothing runs. Without Landlock (before Linux 5.13) `process` leaves files to the permissions of the user that
a script runs as. The memory of graphics cards is not looked after: no device is there.

`bubblewrap` is one bwrap sandbox in which each script has a namespace sandbox; `bubblewrap_each` is one bwrap for each
script, for kernels that allow no namespaces inside it: as safe, but slow. "auto" takes the first that works.
As root `process` changes to a user that cannot read Python packages in a closed folder (such as /root): scripts then
have what was imported before, numpy, Pillow, and if installed scipy.ndimage and cv2.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import struct
import sys
import threading
import weakref
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from vlm_grpo.envs.sandbox.process import BACKENDS
from vlm_grpo.envs.sandbox.script_run import ScriptLimits, ScriptOutcome
from vlm_grpo.envs.sandbox.worker_pool import WorkerPool

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# ECMA-48: control sequences, strings that a terminator ends (or the end of the output), and shorter escapes
ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|\Z)"
    r"|\x1b[ -/]*[0-~]?"
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Status = Literal["ok", "error", "timeout", "memory", "output"]
HEAD, SIZE = struct.Struct("III"), struct.Struct("II")
DONE, OUT_OF_MEMORY = b"D", b"M"
MAX_CODE_LENGTH = 2**20  # characters
SMALL = (4, 4)  # the image that a new sandbox is tried with


@dataclass(frozen=True)
class SandboxSettings:
    """Resource limits of a script.

    Args:
        time_limit: Seconds, by the clock, from its first line to its last.
        memory_mb: MiB that it may add to what Python and the imported packages take.
        disk_mb: MiB of files that it may write.
        threads: How many it may start.
        output_bytes: How much is kept of what it prints, of each of the two outputs.
        loud_bytes: A script that prints more is stopped.
        max_pixels: Of the image that it gives back.
        workers: Scripts at a time, and processes that wait for one. None is twice the CPU cores, at least 8.
    """

    time_limit: float = 10.0
    memory_mb: int = 1024
    disk_mb: int = 64
    threads: int = 32
    output_bytes: int = 2**14
    loud_bytes: int = 2**20
    max_pixels: int = 2**24
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"sandbox: {name} must be more than 0, got {value!r}")


@dataclass(frozen=True)
class SandboxResult:
    """The result of a script. `image` is RGB; None if the script left none in `result`, or did not get that far.

    `status` is "ok", "error" (see `stderr`), "timeout", "memory", or "output" where it printed without end.
    """

    status: Status
    stdout: str
    stderr: str
    image: Image | None
    seconds: float


class SandboxError(RuntimeError):
    """The sandbox, not the script, failed."""


class Sandbox:
    """A pool of processes, each of which runs one script. Any number of threads may call `run`.

    Args:
        settings: What a script may take.
        backend: One of BACKENDS, or "auto": the first of them that works here.

    Raises:
        SandboxError: no backend works, or the one that was asked for does not; says why.
    """

    def __init__(self, settings: SandboxSettings | None = None, backend: str = "auto") -> None:
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f"sandbox: backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
        self.settings = settings or SandboxSettings()
        self.workers = self.settings.workers or max(8, 2 * (os.cpu_count() or 1))
        self._slots = threading.BoundedSemaphore(self.workers)
        self._pool = self._choose(list(BACKENDS) if backend == "auto" else [backend])
        self._pool.fill()
        weakref.finalize(self, self._pool.close)

    @property
    def backend(self) -> str:
        """Which of BACKENDS holds the scripts."""
        return self._pool.backend

    def run(self, code: str, image: Image | None = None) -> SandboxResult:
        """Run a script, which finds the image as `image` and as the file input.png, and leaves one in `result`.

        Raises:
            SandboxError: it could not be started.
            ValueError: the script is longer than a MiB.
        """
        if len(code) > MAX_CODE_LENGTH:
            raise ValueError(f"sandbox: a script must have at most {MAX_CODE_LENGTH:,} characters, got {len(code):,}")
        with self._slots:
            return self._run(self._pool, code, image)

    def close(self) -> None:
        """End every process that waits."""
        self._pool.close()

    def _run(self, pool: WorkerPool, code: str, image: Image | None) -> SandboxResult:
        settings = self.settings
        caps = ScriptLimits(
            settings.time_limit,
            2 + SIZE.size + 3 * settings.max_pixels,
            settings.output_bytes,
            settings.loud_bytes,
        )
        try:
            ending = pool.run_script(encode_payload(code, image), caps)
        except RuntimeError as error:
            raise SandboxError(f"sandbox {pool.backend!r}: no script could be started: {error}") from error
        return to_result(ending, settings)

    def _choose(self, names: list[str]) -> WorkerPool:
        """Return the first backend that runs a script, and warn once of what it does not restrict.

        Raises:
            SandboxError: none does.
        """
        if sys.platform != "linux":
            raise SandboxError(f"sandbox: needs Linux, whose kernel holds the scripts; this is {sys.platform}")
        reasons = []
        for name in names:
            pool = WorkerPool(name, asdict(self.settings), self.workers)
            try:
                self._try(pool)
            except (SandboxError, OSError) as error:
                pool.close()
                reasons.append(f"{name}: {error}")
                continue
            if name == "process":
                _warn_of_process("; ".join(reasons))
            return pool
        raise SandboxError("sandbox: nothing here can hold a script that a model wrote. " + "; ".join(reasons))

    def _try(self, pool: WorkerPool) -> None:
        from PIL import Image

        given = Image.new("RGB", SMALL, (1, 2, 3))
        result = self._run(pool, "result = Image.open('input.png')", given)
        if result.image is None or result.image.tobytes() != given.tobytes():
            raise SandboxError(f"a script that copies an image gave {result!r:.500}")


@lru_cache(maxsize=1)
def _warn_of_process(reasons: str) -> None:
    from vlm_grpo.envs.sandbox.kernel import landlock_version

    files = "held by Landlock" if landlock_version() else "HELD BY NOTHING BUT PERMISSIONS (no Landlock here)"
    logger.warning(
        "sandbox: no namespaces here, so scripts run in plain processes: sockets, other processes and signals are "
        "denied, files are %s, but scripts can fill the disk under the temporary directory and see which files exist. "
        "Install bubblewrap, or allow user namespaces%s",
        files,
        f" ({reasons})" if reasons else "",
    )


@lru_cache(maxsize=8)
def _shared(settings: SandboxSettings, backend: str, process: int) -> Sandbox:
    return Sandbox(settings, backend)


_sharing = threading.Lock()


def shared_sandbox(settings: SandboxSettings, backend: str = "auto") -> Sandbox:
    """Return the sandbox of these settings, one per process, so that environments share its pool."""
    with _sharing:
        return _shared(settings, backend, os.getpid())


def encode_payload(code: str, image: Image | None) -> bytes:
    """Return a script and its image in the format that a worker reads."""
    text = code.encode(errors="replace")
    if image is None:
        return HEAD.pack(len(text), 0, 0) + text
    return HEAD.pack(len(text), *image.size) + text + image.convert("RGB").tobytes()


def to_result(ending: ScriptOutcome, settings: SandboxSettings) -> SandboxResult:
    """Return the result of a run. Pixels come back raw: there is no file to decode that could be a bomb."""
    outcome, data = ending.answer[1:2], ending.answer[2:]
    out, err = decode_output(ending.out, settings.output_bytes), decode_output(ending.err, settings.output_bytes)
    status, reason = outcome_status(ending, outcome, settings)
    image = None
    if status == "ok" and data:
        image = decode_image(data, settings.max_pixels)
        if image is None:
            status, reason = "error", "what came back as an image is none"
    return SandboxResult(status, out, "\n".join(part for part in (err.rstrip(), reason) if part), image, ending.seconds)


def outcome_status(ending: ScriptOutcome, outcome: bytes, settings: SandboxSettings) -> tuple[Status, str]:
    """Return the status, and a message for what the script itself could not print."""
    if ending.stopped == "output":
        return "output", f"stopped: printed more than {settings.loud_bytes:,} bytes"
    killed = os.WTERMSIG(ending.status) if ending.status is not None and os.WIFSIGNALED(ending.status) else 0
    is_out_of_time = killed in (signal.SIGKILL, signal.SIGXCPU) and ending.cpu >= int(settings.time_limit)
    if ending.stopped == "time" or is_out_of_time:
        return "timeout", f"stopped: took more than {settings.time_limit:g} s"
    if outcome == OUT_OF_MEMORY or killed == signal.SIGKILL:
        return "memory", f"stopped: needed more than {settings.memory_mb} MiB"
    if outcome == DONE:
        return "ok", ""
    if killed:
        return "error", f"killed by {signal.Signals(killed).name}"
    return "error", "" if outcome else "the script ended its own process"


def decode_output(data: bytes, limit: int) -> str:
    """Return output as text, with a note where it was cut.

    What steers a terminal is left out: escape sequences with their parameters, and control characters. Whoever looks at
    a log, or a model that reads the text, shall see what was printed and nothing else.
    """
    text = CONTROL.sub("", ESCAPE.sub("", data.decode(errors="replace")).replace("\r\n", "\n").replace("\r", "\n"))
    return text if len(data) < limit else f"{text}\n[cut after {limit:,} bytes]"


def decode_image(data: bytes, max_pixels: int) -> Image | None:
    """Return an image from its size and RGB values; None when they do not fit together, or exceed the limit."""
    from PIL import Image

    if len(data) < SIZE.size:
        return None
    width, height = SIZE.unpack_from(data)
    if not 0 < width * height <= max_pixels or len(data) != SIZE.size + 3 * width * height:
        return None
    return Image.frombytes("RGB", (width, height), data[SIZE.size :])
