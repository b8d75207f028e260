"""Run scripts: a process that has imported what they use, and for each script a sandboxed child of it.

Started by process.py, never imported by the package; needs the standard library, numpy and Pillow. Three processes are
involved in a script. The *starter* imports and forks. The *supervisor*, one per script, builds the sandbox and kills
its content on request. The *worker* enters it, drops all privileges, and only then reads the script.
"""

from __future__ import annotations

import contextlib
import gc
import json
import linecache
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import kernel

WORK = "/script-work"  # inside the sandbox
OWN_USERS = 900_000_000  # unused user ids; a script's own is this plus its process id
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
OPTIONAL_MODULES = (
    *(f"PIL.Image{name}" for name in ("Chops", "Color", "Draw", "Enhance", "Filter", "Font", "Math", "Ops", "Stat")),
    *("PIL.ImageMorph", "PIL.ImageTransform", "numpy.fft", "numpy.linalg", "numpy.random", "scipy.ndimage", "cv2"),
    *("base64", "collections", "colorsys", "copy", "dataclasses", "datetime", "fractions", "functools", "itertools"),
    *("json", "math", "pathlib", "random", "re", "statistics", "string", "tempfile", "textwrap", "time", "typing"),
)
SCRIPT = "script.py"
MAX_LINE_LENGTH, MAX_LINES = 300, 40  # limits of a traceback
MAX_OPEN_FILES = 128  # per script
HEAD, SIZE, REPORT = struct.Struct("III"), struct.Struct("II"), struct.Struct("id")
STARTED, DONE, FAILED, OUT_OF_MEMORY, BROKEN = b"S", b"D", b"E", b"M", b"B"
Settings = Mapping[str, Any]


def serve(control: socket.socket, settings: Settings) -> NoReturn:
    """Fork a supervisor for every five file descriptors that arrive, until the other end is closed."""
    _import()
    with open("/proc/self/statm", encoding="ascii") as file:
        own_size = int(file.read().split()[0]) * resource.getpagesize()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors leave no zombies
    while True:
        data, files, _, _ = socket.recv_fds(control, 1, 5)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            supervise(files, {**settings, "own_size": own_size})
        for descriptor in files:
            os.close(descriptor)


def _import() -> None:
    """Import the modules for scripts; a script whose sandbox hides Python's files has no others."""
    import numpy  # noqa: F401
    from PIL import Image

    Image.init()
    for name in OPTIONAL_MODULES:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()  # a collection in a child would otherwise copy every page


def supervise(files: list[int], settings: Settings) -> NoReturn:
    """Start the worker, kill it when `control` is closed or written to, and report how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *inner, control = files
    folder = tempfile.mkdtemp(prefix="script-") if settings["room"] == "folder" else None
    try:
        if settings["room"] == "namespaces":
            _unshare()
        worker = os.fork()
    except OSError as error:
        os.write(inner[3], BROKEN + str(error).encode())
        os._exit(1)
    if worker == 0:
        os.close(control)
        enter_sandbox(inner, settings, folder)
    for file in inner:
        os.close(file)
    _watch(worker, control)
    if folder:
        os.execvp("rm", ["rm", "-rf", "--", folder])  # however deeply nested by a script
    os._exit(0)


def _unshare() -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(kernel.NEW_NAMESPACES)
    except PermissionError:
        kernel.unshare(kernel.NEW_NAMESPACES | kernel.NEW_USERS)
        kernel.map_own_user(user, group)


def _watch(worker: int, control: int) -> None:
    """Wait until the worker exits or must be killed; report its status and CPU seconds."""
    ended = os.pidfd_open(worker)
    ready, _, _ = select.select([ended, control], [], [])
    if ended not in ready:
        os.kill(worker, signal.SIGKILL)  # the init process of its namespace: all processes in it are killed
    _, status, usage = os.wait4(worker, 0)
    with contextlib.suppress(OSError):
        os.write(control, REPORT.pack(status, usage.ru_utime + usage.ru_stime))


def enter_sandbox(files: list[int], settings: Settings, folder: str | None) -> NoReturn:
    """Enter the sandbox, then run the script that is sent."""
    request, out, err, answer = files
    try:
        os.setsid()
        os.environ.clear()
        user = _own_user()
        if settings["room"] == "namespaces":
            _build(settings, user)
        elif folder:
            os.chown(folder, user, -1)
        tempfile.tempdir = folder or WORK
        os.chdir(tempfile.tempdir)
        _connect(out, err, {request, answer})
        _limit(settings, user)
        _become(user)
        kernel.die_with_parent()
        kernel.drop_capabilities()
        if settings["room"] != "namespaces" and kernel.landlock_version():  # in namespaces, other files are invisible
            readable = [path for path in (*settings["readable"], *DEVICES) if _is_reachable(path)]
            kernel.allow_only(readable, [folder or WORK])
        kernel.filter_calls()
    except BaseException as error:
        os.write(answer, BROKEN + f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    run_script(request, answer, settings["max_pixels"])


def _own_user() -> int:
    """Return a user id for one script, to count its threads; the current one if it cannot be changed."""
    if os.geteuid() != 0:
        return os.geteuid()
    with open("/proc/self/uid_map", encoding="ascii") as file:
        last = max(int(line.split()[0]) + int(line.split()[2]) for line in file)
    return next((user for user in (OWN_USERS + int.from_bytes(os.urandom(3), "big"), NOBODY) if user < last), 0)


def _become(user: int) -> None:
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _is_reachable(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_PATH))
    except OSError:
        return False
    return True


def _build(settings: Settings, user: int) -> None:
    """Build a root file system: Python and its libraries read-only, three devices, and a small tmpfs."""
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NO_SUID, "size=1m,mode=0755")
    os.mkdir("/tmp/.old")
    kernel.pivot("/tmp", "/tmp/.old")
    os.chdir("/")
    for path in (*settings["readable"], *DEVICES):
        if os.path.islink("/.old" + path):
            os.symlink(os.readlink("/.old" + path), path)
        elif os.path.exists("/.old" + path):
            _bind(path)
    os.mkdir(WORK)
    space = f"size={settings['disk_mb']}m,nr_inodes=4096,mode=0700,uid={user}"
    kernel.mount("tmpfs", WORK, "tmpfs", kernel.NO_SUID | kernel.NO_DEVICES, space)
    kernel.detach("/.old")
    os.rmdir("/.old")
    kernel.seal("/", recursive=False)


def _bind(path: str) -> None:
    """Bind-mount a file or folder of the old root read-only at the same path."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    is_folder = os.path.isdir("/.old" + path)
    if is_folder:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    kernel.mount("/.old" + path, path, None, kernel.BIND | kernel.RECURSIVE)
    if path not in DEVICES:
        kernel.seal(path)


def _connect(out: int, err: int, keep_open: set[int]) -> None:
    """Connect stdin to nothing, stdout and stderr to the pipes; close every other file."""
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    first = 3
    for file in sorted(keep_open):
        os.closerange(first, file)
        first = file + 1
    os.closerange(first, 4096)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115


def _limit(settings: Settings, user: int) -> None:
    limits = {
        "AS": settings["own_size"] + settings["memory_mb"] * 2**20,
        "CPU": int(settings["time_limit"]) + 1,
        "FSIZE": settings["disk_mb"] * 2**20,
        "NOFILE": MAX_OPEN_FILES,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }
    if user != os.geteuid() or settings["room"] != "folder":  # otherwise all processes of the user would be counted
        limits["NPROC"] = settings["threads"]
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def run_script(request: int, answer: int, max_pixels: int) -> NoReturn:
    """Read the script and its image, execute it, and return the image in `result`."""
    with open(request, "rb") as file:
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            os._exit(0)  # idle worker that is not needed
        length, width, height = HEAD.unpack(head)
        code, pixels = file.read(length).decode(), file.read(width * height * 3)
    names = _names(pixels, width, height)
    _send(answer, STARTED)
    outcome, data = FAILED, b""
    try:
        outcome = _execute(code, names)
        if outcome == DONE:
            data = _pixels(names.get("result"), max_pixels)
    except MemoryError:
        outcome = OUT_OF_MEMORY
    except Exception as error:
        outcome = FAILED
        sys.stderr.write(f"result: {type(error).__name__}: {error}\n")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    _send(answer, outcome + data)
    os._exit(0)


def _names(pixels: bytes, width: int, height: int) -> dict[str, object]:
    """Return a script's globals: `image`, also as the file input.png, Pillow's `Image`, numpy as `np`."""
    import numpy
    from PIL import Image

    names: dict[str, object] = {"__name__": "__main__", "Image": Image, "np": numpy}
    if width:
        image = names["image"] = Image.frombytes("RGB", (width, height), pixels)
        image.save("input.png", compress_level=1)
    return names


def _execute(code: str, names: dict[str, object]) -> bytes:
    linecache.cache[SCRIPT] = (len(code), None, code.splitlines(keepends=True), SCRIPT)
    try:
        exec(compile(code, SCRIPT, "exec"), names)
    except MemoryError:
        return OUT_OF_MEMORY
    except SystemExit as ended:
        return DONE if ended.code in (None, 0) else FAILED
    except BaseException as error:
        _explain(error)
        return FAILED
    return DONE


def _explain(error: BaseException) -> None:
    """Print the traceback, starting with the script's frames; very long lines, such as base64 images, are cut."""
    inside = error.__traceback__.tb_next if error.__traceback__ else None
    lines = "".join(traceback.format_exception(type(error), error, inside, limit=-8)).splitlines()
    sys.stderr.write("".join(f"{line[:MAX_LINE_LENGTH]}\n" for line in lines[-MAX_LINES:]))


def _pixels(result: object, max_pixels: int) -> bytes:
    """Return size and RGB values of an image or array; empty for None.

    Raises:
        TypeError: the value is neither.
        ValueError: the image is too large.
    """
    import numpy
    from PIL import Image

    if result is None:
        return b""
    if isinstance(result, numpy.ndarray):
        result = Image.fromarray(result if result.dtype == bool else result.clip(0, 255).astype(numpy.uint8))
    if not isinstance(result, Image.Image):
        raise TypeError(f"must be a PIL image, got {type(result).__name__}")
    if not 0 < result.width * result.height <= max_pixels:
        raise ValueError(f"must have 1 to {max_pixels:,} pixels, got {result.width} x {result.height}")
    if "A" in result.getbands() or "transparency" in result.info:
        result = result.convert("RGBA")
        result = Image.alpha_composite(Image.new("RGBA", result.size, "white"), result)
    return SIZE.pack(*result.size) + result.convert("RGB").tobytes()


def _send(answer: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(answer, rest) :]


def main() -> NoReturn:
    """Serve at the socket that is the first argument, as the second, JSON, says."""
    settings = json.loads(sys.argv[2])
    sys.path += [path for path in settings["packages"] if path not in sys.path]
    serve(socket.socket(fileno=int(sys.argv[1])), settings)
