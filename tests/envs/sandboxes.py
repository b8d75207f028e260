"""Sandboxes to test with."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from PIL import Image

from vlm_grpo.envs.sandbox import Sandbox, SandboxSettings

SETTINGS = SandboxSettings(time_limit=4.0, memory_mb=300, disk_mb=16, threads=20, workers=9)
GIVEN = Image.new("RGB", (20, 10), (200, 30, 30))
SECRET = "the secret of this test"


ROOM = ["unshare", *(() if os.geteuid() == 0 else ("--user",)), "--mount", "--pid", "--net", "--fork", "true"]
BWRAP = ["bwrap", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
NEEDED = {  # commands that work wherever a backend must
    "bubblewrap": [*BWRAP, *(("--cap-add", "CAP_SYS_ADMIN") if os.geteuid() == 0 else ()), *ROOM],
    "bubblewrap_each": [*BWRAP, "true"],
    "namespaces": ROOM,
    "process": ["true"],
}


def new_sandbox(backend: str, settings: SandboxSettings = SETTINGS) -> Sandbox:
    """A sandbox of this backend; the test is skipped where the machine does not have what it needs."""
    command = NEEDED[backend]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this machine does not allow {' '.join(command)}: {tried.stderr.strip()}")
    return Sandbox(settings, backend)
