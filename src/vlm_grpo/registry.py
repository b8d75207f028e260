"""Registries: literal dicts that users can extend. Nothing is registered by scanning or decorating."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """A dict from name to entry, with errors that name the kind, the nearest names and all known names.

    Raises:
        KeyError: the name is unknown.
        ValueError: a name is registered twice.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> Entry:
        raise KeyError(unknown_name(self.kind, name, list(self)))

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry under a new name and return it."""
        if name in self:
            raise ValueError(f"{self.kind} {name!r} already exists; choose another name")
        self[name] = entry
        return entry


def nearest(name: str, known: list[str]) -> list[str]:
    """Return up to three known names that resemble `name`, best first."""
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """Return the message for an unknown name, with the nearest and all known names."""
    close = nearest(name, known)
    hint = f"; did you mean {' or '.join(repr(option) for option in close)}?" if close else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(sorted(known))}"
