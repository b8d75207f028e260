"""Lock an output_dir, because two runs would overwrite and delete each other's checkpoints.

A POSIX lock on the file `run.lock` is released when its process ends, even by `kill -9`. It also works between machines
on NFS.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vlm_grpo.cli.train_args import UsageError

logger = logging.getLogger(__name__)

NAME = "run.lock"


@contextmanager
def lock_output_dir(output_dir: str | Path) -> Iterator[None]:
    """Lock a folder during the block; it is created if needed.

    Raises:
        UsageError: another run holds the lock; the message names it.
    """
    path = Path(output_dir) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_locked(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(
                missing_ok=True
            )  # before releasing the lock; a run that has opened the file in the meantime reopens it
            os.close(descriptor)


def _open_locked(path: Path) -> int | None:
    """Return the descriptor that holds the lock; None if the file system does not support locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning(
                    "%s: this file system does not support locks (%s); concurrent runs are not detected", path, error
                )
                return None
            raise UsageError(_locked_message(path.parent, owner)) from error
        if _is_same(descriptor, path):
            break
        os.close(descriptor)  # its owner ended between both calls and removed it
    since = datetime.now(UTC).isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0)
    return descriptor


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _locked_message(folder: Path, owner: bytes) -> str:
    try:
        holder = json.loads(owner)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, LookupError, TypeError):
        who = "a process that has just started"
    return f"--output_dir {folder}: in use by another run ({who}); wait for it, stop it, or choose another --output_dir"
