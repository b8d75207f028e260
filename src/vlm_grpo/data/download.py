"""Download large files with resume, and unpack archives file by file."""

from __future__ import annotations

import errno
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from vlm_grpo.io import whole_file

TIMEOUT = 60  # seconds without data
SPEED_WINDOW = 60  # seconds over which the speed is measured
MIN_SPEED = 1000
BLOCK = 2**20
NETWORK_ERRORS = (OSError, HTTPException)


class SlowError(ConnectionError):
    """The server sends less than MIN_SPEED bytes per second."""


def fetch(url: str, path: str | Path, *, attempts: int = 5, pause: float = 2.0) -> Path:
    """Download a URL to `path` atomically; an existing file is kept.

    Partial content is kept in `path.part`. Another call, also in another process, resumes from there unless the server
    has a different version (`ETag`) or does not support ranges. A file is complete if it has the announced size.

    Raises:
        OSError: the server cannot be reached, has no such file, or failed `attempts` times in a row without sending
            data; the disk is full. Less than MIN_SPEED bytes per second counts as a failure.
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, attempts_left = path.with_name(path.name + ".part"), attempts
    while True:
        size_before = _size(part)
        try:
            _fetch_rest(url, part)
            part.replace(path)
            _tag_file(part).unlink(missing_ok=True)
            return path
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise OSError(f"{url}: the server responded {error.code} {error.reason}") from error
            failure: Exception = error
        except NETWORK_ERRORS as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise OSError(errno.ENOSPC, f"{url}: no space in {path.parent}: {error.strerror}") from error
            failure = error
        is_further = _size(part) > size_before and not isinstance(failure, SlowError)
        attempts_left = attempts if is_further else attempts_left - 1
        if attempts_left <= 0:
            raise OSError(
                f"{url}: {failure}; {_size(part):,} bytes are in {part}; run the command again to resume"
            ) from failure
        time.sleep(pause)


def _fetch_rest(url: str, part: Path) -> None:
    """Append the missing bytes to a partial file.

    Raises:
        OSError, HTTPException: the connection failed or was closed early.
    """
    from tqdm import tqdm

    stream = _open_request(url, part)
    if stream is None:
        return
    with stream:
        position = _size(part) if stream.status == 206 else 0  # 200: the whole file
        length = stream.headers.get("Content-Length")
        total = None if length is None else position + int(length)
        check_room(part.parent, 0 if total is None else total - position)
        bar_options = {"unit": "B", "unit_scale": True, "desc": part.name.removesuffix(".part"), "disable": None}
        with part.open("r+b" if position else "wb") as file, tqdm(total=total, initial=position, **bar_options) as bar:
            file.seek(position)
            mark, least = time.monotonic() + SPEED_WINDOW, position + SPEED_WINDOW * MIN_SPEED
            while block := stream.read1(BLOCK):
                position += file.write(block)
                bar.update(len(block))
                if time.monotonic() >= mark:
                    if position < least:
                        raise SlowError(f"the server sent less than {MIN_SPEED:,} bytes per second")
                    mark, least = time.monotonic() + SPEED_WINDOW, position + SPEED_WINDOW * MIN_SPEED
    if total is not None and position != total:
        raise ConnectionError(f"the connection ended after {position:,} of {total:,} bytes")


def check_room(folder: Path, needed: int) -> None:
    """Check that the disk has enough free space.

    Raises:
        OSError: ENOSPC, with the number of bytes needed and free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed but only {free:,} are free")


def _open_request(url: str, part: Path) -> HTTPResponse | None:
    """Request the missing bytes, or the whole file, and return the response; None if nothing is missing."""
    size_before, tag = _size(part), _tag_file(part)
    headers = {"Accept-Encoding": "identity"}
    if size_before and tag.exists():
        headers |= {"Range": f"bytes={size_before}-", "If-Range": tag.read_text(encoding="utf-8")}
    try:
        stream = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range", "").endswith(f"/{size_before}"):
            return None
        part.unlink()
        return _open_request(url, part)
    version = stream.headers.get("ETag") or stream.headers.get("Last-Modified")
    if version and not version.startswith("W/"):
        tag.write_text(version, encoding="utf-8")
    else:
        tag.unlink(missing_ok=True)  # without a version the download cannot be resumed
    return stream


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_file(part: Path) -> Path:
    """Return the file that stores the version of a partial download."""
    return part.with_name(part.name + ".version")


def unpack(archive: str | Path, folder: str | Path, *, only: str | None = None) -> int:
    """Unpack a zip file, or only the file `only`; existing files of the correct size are kept.

    Return the number of files written. Each is verified against the archive's checksum before it is renamed.

    Raises:
        ValueError: the archive is corrupt, lacks that file, or contains a path outside the folder.
        OSError: there is not enough disk space.
    """
    advice = f"delete {archive} and download it again"
    try:
        with zipfile.ZipFile(archive) as zip_file:
            entries = [entry for entry in zip_file.infolist() if not entry.is_dir() and only in (None, entry.filename)]
            if not entries:
                raise ValueError(f"{archive} has no file {only or 'in it'}; {advice}")
            Path(folder).mkdir(parents=True, exist_ok=True)
            missing = [entry for entry in entries if not _is_there(zip_file, entry, Path(folder))]
            check_room(Path(folder), sum(entry.file_size for entry in missing))
            for entry in missing:
                _unpack_one(zip_file, entry, Path(folder))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive}: {error}; {advice}") from error
    return len(missing)


def _is_there(zip_file: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> bool:
    """Return whether the folder already has a file of the archive with the same size."""
    target = folder / entry.filename
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{zip_file.filename}: {entry.filename} is outside {folder}")
    return target.exists() and target.stat().st_size == entry.file_size


def _unpack_one(zip_file: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Write one file of an archive."""
    target = folder / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with zip_file.open(entry) as source, whole_file(target, sync=False) as file:
        while block := source.read(BLOCK):
            file.write(block)
