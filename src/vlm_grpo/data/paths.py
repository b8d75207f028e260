"""Lists of paths on a command line, and image paths relative to their folder. Does not access files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vlm_grpo.data.images import URL_STARTS


def split_paths(value: str | Sequence[str] | None) -> list[str]:
    """Split entries at ':', as in `a.jsonl:b.jsonl`; a list is returned unchanged.

    Colons in URLs (`https://`, a port) and after a drive letter (`C:/x`, `C:\\x`) do not separate entries.
    Empty entries are kept: `x/:` is `x/` and "".
    """
    if value is None:
        return []
    if not isinstance(value, str):
        return [str(entry) for entry in value]
    entries: list[str] = []
    for piece in value.split(":"):
        if entries and _continues(entries[-1], piece):
            entries[-1] = f"{entries[-1]}:{piece}"
        else:
            entries.append(piece)
    return entries


def _continues(entry: str, piece: str) -> bool:
    """Return whether the colon between two parts belongs to a URL or a drive letter."""
    scheme, slashes, host = entry.partition("://")
    if not slashes:
        is_drive = len(entry) == 1 and entry.isalpha() and piece[:1] in ("/", "\\")
        return is_drive or (entry.isalpha() and len(entry) > 1 and piece.startswith("//"))
    return scheme.isalpha() and "/" not in host and piece.split("/", 1)[0].isdigit()


def match_files(entries: list[str], files: int) -> list[str] | None:
    """Return one entry per file; a single entry (or none) is repeated. None if the numbers do not match."""
    if len(entries) <= 1:
        return (entries or [""]) * files
    return entries if len(entries) == files else None


def in_folder(folder: str, path: str) -> str:
    """Join an image path with its folder; URLs are unchanged."""
    if path.startswith(URL_STARTS):
        return path
    if folder.startswith(URL_STARTS):
        return f"{folder.rstrip('/')}/{path}"
    return os.path.normpath(os.path.join(folder, path))


def leaves_folder(folder: str, path: str) -> bool:
    """Return whether a path is outside its folder because it contains `..` or is absolute.

    Symbolic links are not followed: an image folder may consist of links. Without a folder, absolute paths are allowed
    and only relative paths can be outside (of the working directory).
    """
    if path.startswith(URL_STARTS):
        return False
    if folder.startswith(URL_STARTS):
        return ".." in path.split("/")
    if not folder and os.path.isabs(path):
        return False
    if ".." not in path and not os.path.isabs(path):
        return False
    root = os.path.abspath(folder)
    return os.path.commonpath([root, os.path.abspath(os.path.join(root, path))]) != root
