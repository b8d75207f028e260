"""Atomic file writes: a file is written to a temporary path in the same folder, then renamed.

An interrupted write, even by `kill -9`, leaves the old file and at most a `*.partial` file, which the next call
overwrites.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

STARTS = {  # signatures of image files
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\x00": ".tiff",
    b"MM\x00*": ".tiff",
}


def refuse_existing(paths: Sequence[str | Path], *, overwrite: bool) -> None:
    """Check that these files may be written.

    Raises:
        FileExistsError: one of them exists and `overwrite` is False.
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: one of them is a folder.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another name, or replace it with --overwrite")
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.absolute().parent}; create it first")


@contextmanager
def whole_file(path: str | Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing bytes; it is renamed to its final name only if the block succeeds."""
    with whole_files([path], sync=sync) as (file,):
        yield file


@contextmanager
def whole_files(paths: Sequence[str | Path], *, sync: bool = True) -> Iterator[list[BinaryIO]]:
    """Open several such files, which are renamed together once all are written.

    With `sync` they are flushed to disk first, which takes most of the time for small files.
    """
    partials = [Path(path).with_name(f"{Path(path).name}.partial") for path in paths]
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(partial.open("wb")) for partial in partials]
            yield files
            for file in files:
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        for partial, path in zip(partials, paths, strict=True):
            os.replace(partial, path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a small file atomically, text as UTF-8; text from a model may contain invalid Unicode."""
    with whole_file(path) as file:
        file.write(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def json_line(row: object) -> bytes:
    """Return a row as one line of a jsonl file.

    Raises:
        TypeError, ValueError: it contains a value that JSON does not support, such as bytes or NaN.
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def image_suffix(content: bytes) -> str:
    """Return the usual suffix of an image file by its first bytes.

    Raises:
        ValueError: it is not a PNG, JPEG, WebP, GIF, BMP or TIFF file.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    suffix = next((suffix for start, suffix in STARTS.items() if content.startswith(start)), None)
    if suffix is None:
        raise ValueError(f"bytes that begin with {content[:8]!r}, expected a PNG, JPEG, WebP, GIF, BMP or TIFF file")
    return suffix


def content_name(content: bytes) -> str:
    """Return a name for an image file from a hash of its content.

    Raises:
        ValueError: as for `image_suffix`.
    """
    return hashlib.sha256(content).hexdigest()[:32] + image_suffix(content)


def write_once(path: Path, content: bytes) -> None:
    """Write a file unless it already exists with the same content.

    Raises:
        FileExistsError: it exists with other content, which is kept.
    """
    if not path.exists():
        with whole_file(path, sync=False) as file:
            file.write(content)
    elif path.read_bytes() != content:
        raise FileExistsError(f"{path} exists with other content; move it or choose another folder")
