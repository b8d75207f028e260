"""Sample held-out rows such that no image (or other key) is in both splits. Works on groups of rows, not files."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence


class RowGroups:
    """Rows that must stay together because they share a key, directly or through other rows (union-find)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._owner: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def add(self, keys: Iterable[Hashable]) -> None:
        """Add the next row with its keys; a row without keys forms its own group."""
        row = len(self._parents)
        self._parents.append(row)
        for key in keys:
            other = self._owner.setdefault(key, row)
            self._parents[self._root(row)] = self._root(other)

    def members(self) -> list[list[int]]:
        """Return the rows of each group, groups in the order of their first row."""
        groups: dict[int, list[int]] = {}
        for row in range(len(self._parents)):
            groups.setdefault(self._root(row), []).append(row)
        return list(groups.values())

    def _root(self, row: int) -> int:
        while self._parents[row] != row:
            self._parents[row] = self._parents[self._parents[row]]
            row = self._parents[row]
        return row


def sample_held_out(groups: Sequence[Sequence[int]], count: int, seed: int) -> set[int]:
    """Return the rows of randomly chosen whole groups, at most `count` rows in total; deterministic for a seed.

    Raises:
        ValueError: all groups are larger, or one of the splits would be empty.
    """
    total = sum(map(len, groups))
    if not 0 < count < total:
        raise ValueError(f"{count} of {total} rows cannot be held out: both splits need rows")
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    rows: set[int] = set()
    for number in order:
        if len(rows) + len(groups[number]) <= count:
            rows.update(groups[number])
    if not rows:
        smallest = min(map(len, groups))
        raise ValueError(f"no group fits into {count} held-out rows: the smallest has {smallest} rows")
    return rows
