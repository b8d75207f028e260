"""Start the process that forks the sandbox's workers, with or without bubblewrap."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_grpo.envs.sandbox.script_run import Worker

# The strongest first, with the kind of room: to be built by the worker, already built, or a folder of the machine.
BACKENDS = {"bubblewrap": "namespaces", "bubblewrap_each": "given", "namespaces": "namespaces", "process": "folder"}
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
CODE = [str(Path(__file__).resolve().with_name(f"{name}.py")) for name in ("kernel", "worker")]
BOOT = """
import importlib.util as util, sys
for path in sys.argv[3:]:
    name = path.rpartition("/")[2][:-3]
    spec = util.spec_from_file_location(name, path)
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
module.main()
"""
NEEDED = (
    "SYS_ADMIN",
    "SETUID",
    "SETGID",
    "SETPCAP",
    "CHOWN",
)  # capabilities of root for namespaces and for changing the user id
SYS_ADMIN = 21  # number of the capability


class Starter:
    """A process that has imported the modules for scripts and forks workers on request."""

    def __init__(self, backend: str, settings: Mapping[str, Any]) -> None:
        self.control, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        paths = readable()
        worker_settings = {**settings, "room": BACKENDS[backend], "readable": paths, "packages": packages()}
        command = [sys.executable, "-I", "-B", "-c", BOOT, str(theirs.fileno()), json.dumps(worker_settings), *CODE]
        if backend.startswith("bubblewrap"):
            command = [*bubblewrap(paths, settings["disk_mb"]), *command]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=_environment(),
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def worker(self) -> Worker:
        """Return a new worker, which may still be starting; data sent to it is buffered.

        Raises:
            OSError: the process has exited.
        """
        worker = Worker()
        try:
            worker.hand_over(self.control)
        except OSError:
            worker.close()
            raise
        return worker

    def last_words(self) -> str:
        """Return its output, for an error message."""
        self.errors.seek(0)
        return self.errors.read(4000).decode(errors="replace").strip()

    def close(self) -> None:
        """Terminate it. Running workers continue, except under bubblewrap, where they are killed."""
        self.control.shutdown(socket.SHUT_RDWR)  # terminates bubblewrap's inner process, even if a fork has a copy
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _environment() -> dict[str, str]:
    """Return the starter's environment variables; scripts get none. One thread each, because many run concurrently."""
    variables = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**variables, **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}}


def packages() -> list[str]:
    """Return the folders of numpy and Pillow, which an isolated Python may not search."""
    folders = [importlib.util.find_spec(name) for name in ("numpy", "PIL")]
    return sorted({str(Path(spec.origin).resolve().parents[1]) for spec in folders if spec and spec.origin})


def readable() -> list[str]:
    """Return the paths readable by scripts: this Python, its packages, shared libraries. Outer folders come first."""
    bases = [path for path in (sys.base_prefix, sys.prefix) if path not in ("/usr", "/usr/local")]
    programs = [sys.executable, os.path.realpath(sys.executable)]
    paths = sorted({path for path in (*LIBRARIES, *bases, *packages(), *programs) if os.path.lexists(path)}, key=len)
    chosen: list[str] = []
    for path in paths:
        if not any(path.startswith(f"{outer}/") for outer in chosen):
            chosen.append(path)
    return chosen


def bubblewrap(paths: list[str], disk_mb: int) -> list[str]:
    """Return the command that builds the outer sandbox of the starter and all its workers."""
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if _is_administrator():
        command += [word for name in NEEDED for word in ("--cap-add", f"CAP_{name}")]
    else:
        command += ["--unshare-user"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # first: Python may be somewhere in /tmp
    command += ["--perms", "0777", "--size", str(disk_mb * 2**20), "--tmpfs", "/script-work"]
    for folder in dict.fromkeys(str(parent) for path in [*paths, *CODE] for parent in [*Path(path).parents][-2::-1]):
        command += ["--perms", "0755", "--dir", folder]  # otherwise not accessible to a script's user
    for path in paths:
        is_link = os.path.islink(path) and path in LIBRARIES
        command += ["--symlink", os.readlink(path), path] if is_link else ["--ro-bind", path, path]
    for path in CODE:
        command += ["--ro-bind", path, path]
    sealed = ("/", "/dev", "/tmp")  # their memory is not limited
    return [*command, *(word for path in sealed for word in ("--remount-ro", path)), "--"]


def _is_administrator() -> bool:
    """Return whether this is root with the right to create namespaces, which root in a container may lack."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> SYS_ADMIN & 1)
    return False
