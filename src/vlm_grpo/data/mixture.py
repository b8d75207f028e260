"""Mix several files in given proportions: select and order the rows. No row is repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from vlm_grpo.data.errors import Problem
from vlm_grpo.data.paths import split_paths
from vlm_grpo.data.readers import split_entries

if TYPE_CHECKING:
    import numpy as np

    from vlm_grpo.data.readers import OpenResult

FLAG = "--mixture"


def file_shares(
    mixture: str | Sequence[str | float] | None, source: object, result: OpenResult
) -> tuple[list[Fraction], list[Problem]]:
    """Return the fraction of each file (none without a mixture) and the problems of the fractions."""
    if mixture is None:
        return [], []
    files = len(split_entries(source)) if isinstance(source, str | list | tuple) else 1
    shares, problems = read_shares(mixture, files)
    if problems or len(result.sources) < files:
        return shares, problems
    return shares, unused_files([part.name for part in result.sources], list(map(len, result.sources)), shares)


def read_shares(mixture: str | Sequence[str | float], files: int) -> tuple[list[Fraction], list[Problem]]:
    """Parse the fraction of each file, `0.7:0.3` or a list, as exact numbers; return them and their problems.

    They may have any sum: `70:30` and `7:3` are equal.
    """
    entries = split_paths(mixture if isinstance(mixture, str) else [str(share) for share in mixture])
    if len(entries) != files:
        return [], [Problem(FLAG, "number", f"{len(entries)} for {files} data files", f"{files}, one for each file")]
    shares = [_share(entry) for entry in entries]
    invalid = [entry for entry, share in zip(entries, shares, strict=True) if share is None]
    expected = "a number above 0; remove files that are not used"
    problems = [Problem(FLAG, "share", repr(entry), expected) for entry in invalid]
    return [share for share in shares if share is not None], problems


def _share(entry: str) -> Fraction | None:
    """Parse a decimal exactly, 0.7 as 7/10; return None for anything but a positive number."""
    try:
        value = float(entry)
    except ValueError:
        return None
    return Fraction(repr(value)) if value > 0 and math.isfinite(value) else None


def mixture_counts(sizes: Sequence[int], shares: Sequence[Fraction]) -> list[int]:
    """Return the number of rows of each file in the longest mixture that repeats no row.

    The file that is exhausted first determines the length: 10 and 100 rows at 0.7:0.3 give floor(10 / 0.7) = 14 rows.
    The shares of 9.8 and 4.2 rows are rounded by the largest remainder method: 10 and 4.
    """
    total = sum(shares)
    length = min(math.floor(size * total / share) for size, share in zip(sizes, shares, strict=True))
    quotas = [length * share / total for share in shares]
    counts = [math.floor(part) for part in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda number: counts[number] - quotas[number])
    for number in by_remainder[: length - sum(counts)]:
        counts[number] += 1
    return counts


def unused_files(names: Sequence[str], sizes: Sequence[int], shares: Sequence[Fraction]) -> list[Problem]:
    """Return a problem for each file from which the mixture would use no row."""
    counts = mixture_counts(sizes, shares)
    ends = min(range(len(sizes)), key=lambda number: sizes[number] / shares[number])
    why = f"{names[ends]} has only {sizes[ends]}"
    return [
        Problem(
            FLAG,
            name,
            f"none of its {size} rows would be used: {why}",
            "a larger fraction, or more rows in the other file",
        )
        for name, size, count in zip(names, sizes, counts, strict=True)
        if not count
    ]


def mixture_numbers(sizes: Sequence[int], shares: Sequence[Fraction], seed: int = 0) -> np.ndarray:
    """Return the row numbers of a mixture, counted over all files: int64 (length,).

    The rows of each file are sampled with the seed and keep their order. The files are interleaved evenly, so every
    part of the mixture has nearly the overall proportions even without shuffling. The result is deterministic.
    """
    import numpy as np

    counts = mixture_counts(sizes, shares)
    starts = np.cumsum([0, *sizes[:-1]])
    row_numbers = [
        start + np.sort(np.random.default_rng([seed, number]).permutation(size)[:count])
        for number, (start, size, count) in enumerate(zip(starts, sizes, counts, strict=True))
    ]
    places = [(np.arange(count) + 0.5) / max(count, 1) for count in counts]  # evenly spaced over the mixture
    return np.concatenate(row_numbers)[np.argsort(np.concatenate(places), kind="stable")]
