"""Temporary browser profiles: one left by a killed run is removed by the next run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

PREFIX = "vlm_grpo_chromium_"
OWNER = "owner.lock"  # locked while the process that made the folder lives; a process id could be that of another


class Profile:
    """A new folder, which `close` removes."""

    def __init__(self) -> None:
        remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._owner = _locked(self.folder / f"{OWNER}.partial")
        (self.folder / f"{OWNER}.partial").rename(self.folder / OWNER)  # never seen without its lock

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owner.close()


def remove_stale() -> None:
    """Remove the folders of this user's processes that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # such as BlockingIOError: its process lives
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or not (folder / OWNER).is_file():
                continue
            with _locked(folder / OWNER):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path) -> BinaryIO:
    """Return the file, open and locked.

    Raises:
        BlockingIOError: another one has locked it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
