"""Problems of data, and the table in which commands and exceptions print them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_grpo.redact import redact_text
from vlm_grpo.registry import nearest

HEADER = ("line", "field", "found", "expected")
SHOWN = 50
FieldProblem = tuple[str, str, str]  # field, found, expected
INDEX = re.compile(r"\[\d+\]")  # problems of conversations[1] and conversations[3] are counted together
WIDTH = 100  # characters of a value; longer ones are shortened in the middle


@dataclass(frozen=True, slots=True)  # there may be one for each of a million rows
class Problem:
    """One problem of the data: its location (`file:line`), its field, the value found and what was expected.

    Rows with a warning are used nevertheless.
    """

    where: str
    field: str
    found: str
    expected: str
    is_warning: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", sys.intern(self.found))  # the same text may occur a million times

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Return the four columns of the table, each on one line."""
        return self.where, self.field, _shorten(_one_line(redact_text(self.found))), _one_line(self.expected)


class MediaError(ValueError):
    """An image or video that cannot be decoded; the message names file and line."""


class DataError(ValueError):
    """All problems of a data set, as one table.

    `problems` has all of them; the message shows the first 50.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(f"the data cannot be used\n{problem_table(self.problems, SHOWN)}")


def show_value(value: object, limit: int = 70) -> str:
    """Return a value for an error message: quoted, on one line, shortened."""
    if isinstance(value, str | bytes):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def known_name(value: object, known: Sequence[str]) -> str:
    """Return the expected names for an unknown one: the nearest if there are any, else all."""
    close = nearest(value, list(known)) if isinstance(value, str) else []
    return f"{' or '.join(close)} (did you mean that?)" if close else f"one of {', '.join(known)}"


def problem_table(problems: Sequence[Problem], shown: int | None = None) -> str:
    """Return aligned text: at most `shown` lines of problems, then a count for each kind."""
    rows: list[tuple[str, ...]] = [HEADER, *(problem.cells for problem in problems[:shown])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if shown is not None and len(problems) > shown:
        lines.append(f"... and {len(problems) - shown} more; vlm-grpo check lists all of them")
    return "\n".join([*lines, "", *problem_counts(problems)])


def problem_counts(problems: Sequence[Problem]) -> list[str]:
    """Return a line with the total, then a line for each field and expectation, most frequent first."""
    errors = sum(not problem.is_warning for problem in problems)
    places = len({problem.where for problem in problems})
    total = f"{_many(errors, 'problem')} and {_many(len(problems) - errors, 'warning')} at {_many(places, 'place')}"
    kinds = Counter((INDEX.sub("[]", problem.field), problem.cells[3]) for problem in problems)
    return [total, *(f"{count:>8}  {field}: expected {expected}" for (field, expected), count in kinds.most_common())]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _one_line(value: str) -> str:
    text = " ".join(value.split())
    return text if text.isprintable() else repr(text)[1:-1]


def _shorten(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH // 2 - 2]}...{text[-WIDTH // 2 + 1 :]}"
