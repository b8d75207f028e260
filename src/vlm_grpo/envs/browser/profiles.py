"""Temporary browser profiles; those left by a killed run are removed by the next run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

PREFIX = "vlm_grpo_chromium_"
OWNER = "owner.lock"  # locked while the owner runs; a process id could have been reused


class Profile:
    """A new folder, which is removed by `close`."""

    def __init__(self) -> None:
        remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._owner = _locked(self.folder / f"{OWNER}.partial")
        (self.folder / f"{OWNER}.partial").rename(self.folder / OWNER)  # always locked when it becomes visible

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owner.close()


def remove_stale() -> None:
    """Remove the folders of processes of this user that have exited."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # such as BlockingIOError: its owner is running
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or not (folder / OWNER).is_file():
                continue
            with _locked(folder / OWNER):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path) -> BinaryIO:
    """Return the file, open and locked.

    Raises:
        BlockingIOError: another process has locked it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
