"""A sandbox for Python code from a model: one image as input, one image and text as output. Linux only.

```python
sandbox = Sandbox(SandboxSettings(time_limit=5.0))
result = sandbox.run("result = image.rotate(90)", image)   # result.status, .stdout, .stderr, .image, .seconds
```

Every script runs in its own process, which is started in advance and has numpy and Pillow imported. Restrictions:

| | bubblewrap, bubblewrap_each, namespaces | process |
|---|---|---|
| network | none: namespace of its own, and no sockets | no sockets |
| other processes | unseen: namespace of its own, own user id (as root) | no signals, no ptrace; own user id (as root) |
| files | Python and its libraries to read, /script-work to write | the same by Landlock, but names can be asked for |
| disk | /script-work is memory, `disk_mb` in all | `disk_mb` for each file, no limit in all |
| memory, CPU, open files | limits of the kernel | the same |
| new processes, programs | none | none |
| threads | `threads` | `threads` as root; else only memory limits them |

Sockets, new processes, signals and so on are denied by a system call filter (seccomp), which every backend uses;
without it nothing runs. Without Landlock (before Linux 5.13), `process` relies on the file permissions of the user that
a script runs as. GPU memory is not limited: no device is accessible.

`bubblewrap` is one bwrap sandbox in which each script has a namespace sandbox; `bubblewrap_each` is one bwrap per
script, for kernels that do not permit nested namespaces: as safe, but slow. "auto" selects the first that works.
As root, `process` changes to a user that cannot read Python packages in a private folder (such as /root): scripts then
have only the modules imported before: numpy, Pillow, and if installed scipy.ndimage and cv2.
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
SMALL = (4, 4)  # size of the test image for a new sandbox


@dataclass(frozen=True)
class SandboxSettings:
    """Resource limits of a script.

    Args:
        time_limit: Wall-clock seconds.
        memory_mb: MiB in addition to Python and the imported packages.
        disk_mb: MiB of written files.
        threads: Maximum number of threads.
        output_bytes: Bytes that are kept of stdout and of stderr each.
        loud_bytes: Bytes of output after which a script is stopped.
        max_pixels: Maximum number of pixels of the returned image.
        workers: Number of concurrent scripts and idle processes. None means twice the CPU cores, at least 8.
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
    """The result of a script. `image` is RGB; None if the script did not assign one to `result`.

    `status` is "ok", "error" (see `stderr`), "timeout", "memory", or "output" (it printed too much).
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
        settings: Resource limits of a script.
        backend: One of BACKENDS, or "auto": the first of them that works here.

    Raises:
        SandboxError: no backend, or not the requested one, works; the message says why.
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
        """Return the name of the backend."""
        return self._pool.backend

    def run(self, code: str, image: Image | None = None) -> SandboxResult:
        """Run a script. Its input image is `image` and the file input.png, its output image is `result`.

        Raises:
            SandboxError: the script could not be started.
            ValueError: the script is longer than a MiB.
        """
        if len(code) > MAX_CODE_LENGTH:
            raise ValueError(f"sandbox: a script must have at most {MAX_CODE_LENGTH:,} characters, got {len(code):,}")
        with self._slots:
            return self._run(self._pool, code, image)

    def close(self) -> None:
        """Terminate all idle processes."""
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
        """Return the first backend that runs a script, and warn once about missing restrictions.

        Raises:
            SandboxError: no backend works.
        """
        if sys.platform != "linux":
            raise SandboxError(f"sandbox: needs Linux, whose kernel isolates the scripts; this is {sys.platform}")
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
        raise SandboxError("sandbox: no backend can isolate scripts on this machine. " + "; ".join(reasons))

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
    """Return the sandbox with these settings, one per process, so that environments share its pool."""
    with _sharing:
        return _shared(settings, backend, os.getpid())


def encode_payload(code: str, image: Image | None) -> bytes:
    """Return a script and its image in the format that a worker reads."""
    text = code.encode(errors="replace")
    if image is None:
        return HEAD.pack(len(text), 0, 0) + text
    return HEAD.pack(len(text), *image.size) + text + image.convert("RGB").tobytes()


def to_result(ending: ScriptOutcome, settings: SandboxSettings) -> SandboxResult:
    """Return the result of a run. Pixels are returned raw, so that no decompression bomb can be decoded."""
    outcome, data = ending.answer[1:2], ending.answer[2:]
    out, err = decode_output(ending.out, settings.output_bytes), decode_output(ending.err, settings.output_bytes)
    status, reason = outcome_status(ending, outcome, settings)
    image = None
    if status == "ok" and data:
        image = decode_image(data, settings.max_pixels)
        if image is None:
            status, reason = "error", "the returned image is invalid"
    return SandboxResult(status, out, "\n".join(part for part in (err.rstrip(), reason) if part), image, ending.seconds)


def outcome_status(ending: ScriptOutcome, outcome: bytes, settings: SandboxSettings) -> tuple[Status, str]:
    """Return the status, and a message that the script itself could not print."""
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
    return "error", "" if outcome else "the script exited its own process"


def decode_output(data: bytes, limit: int) -> str:
    """Return output as text, with a note if it was truncated.

    Terminal escape sequences with their parameters and control characters are removed, so that readers of
    a log, and the model, see only the printed text.
    """
    text = CONTROL.sub("", ESCAPE.sub("", data.decode(errors="replace")).replace("\r\n", "\n").replace("\r", "\n"))
    return text if len(data) < limit else f"{text}\n[cut after {limit:,} bytes]"


def decode_image(data: bytes, max_pixels: int) -> Image | None:
    """Return an image from its size and RGB values; None if they are inconsistent or exceed the limit."""
    from PIL import Image

    if len(data) < SIZE.size:
        return None
    width, height = SIZE.unpack_from(data)
    if not 0 < width * height <= max_pixels or len(data) != SIZE.size + 3 * width * height:
        return None
    return Image.frombytes("RGB", (width, height), data[SIZE.size :])
