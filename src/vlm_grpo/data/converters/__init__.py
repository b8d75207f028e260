"""Data files of other systems, to this package's jsonl (the conversations form) and back, without loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlm_grpo.data.converters import llava, parquet, swift
from vlm_grpo.data.converters.roundtrip import KEPT, Row, Unfit, convert_row
from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.parsing import Form
from vlm_grpo.data.readers.text_files import JsonlSource, json_source
from vlm_grpo.io import json_line, whole_file
from vlm_grpo.table import Table

Rows = Callable[[], Iterator[tuple[str, Row]]]


@dataclass(frozen=True)
class FileForm:
    """One kind of file. `folder` in the functions is the image folder.

    Attributes:
        read: (path, folder) to where each row stands and the row, or what is wrong with it.
        write: (path, rows, folder, problems) to the number of rows; with problems there is no file.
        to_ours, from_ours: (row, folder) to a row in the conversations form, and the way back.
        uses_folder: whether the image folder makes a difference; `needs_folder`: whether it cannot do without.
    """

    read: Callable[[Path, str], Iterator[tuple[str, Row | Problem]]]
    write: Callable[[Path, Rows, str, list[Problem]], int]
    to_ours: Callable[[Row, str], Row]
    from_ours: Callable[[Row, str], Row]
    uses_folder: bool = False
    needs_folder: bool = False


def read_jsonl(path: Path, folder: str) -> Iterator[tuple[str, Row | Problem]]:
    """The objects in the lines of a file."""
    source = JsonlSource(path, Form())
    return ((source.where(number), row) for number, row in enumerate(source.rows()))


def read_json(path: Path, folder: str) -> Iterator[tuple[str, Row | Problem]]:
    """The objects in a json array, or in the lines of a file."""
    source = json_source(path, Form())
    return ((source.where(number), row) for number, row in enumerate(source.rows()))


def write_jsonl(path: Path, rows: Rows, folder: str, problems: list[Problem]) -> int:
    """One row a line."""
    return _write(path, rows, problems, start=b"", between=b"", end=b"")


def write_json(path: Path, rows: Rows, folder: str, problems: list[Problem]) -> int:
    """One array, with a line for each row."""
    return _write(path, rows, problems, start=b"[\n", between=b", ", end=b"]\n")


class _Stop(Exception):
    """The file is not wanted any more."""


def _write(path: Path, rows: Rows, problems: list[Problem], *, start: bytes, between: bytes, end: bytes) -> int:
    count = 0
    try:
        with whole_file(path) as file:
            file.write(start)
            for where, row in rows():
                try:
                    line = json_line(row)
                except (TypeError, ValueError) as error:
                    problems.append(Problem(where, "row", str(error), "values that JSON has"))
                    continue
                file.write(between + line if count else line)
                count += 1
            file.write(end)
            if problems:
                raise _Stop
    except _Stop:
        return 0
    return count


FORMS: Table[FileForm] = Table(
    "file form",
    {
        "jsonl": FileForm(read_jsonl, write_jsonl, lambda row, folder: row, lambda row, folder: row),
        "parquet": FileForm(
            parquet.read_parquet,
            parquet.write_parquet,
            lambda row, folder: parquet.to_ours(row),
            lambda row, folder: parquet.from_ours(row),
            uses_folder=True,
            needs_folder=True,
        ),
        "swift": FileForm(read_jsonl, write_jsonl, swift.to_ours, swift.from_ours, uses_folder=True),
        "llava": FileForm(
            read_json, write_json, lambda row, folder: llava.to_ours(row), lambda row, folder: llava.from_ours(row)
        ),
    },
)


def convert_files(inputs: Iterable[Path], output: Path, source: str, target: str, folder: str) -> int:
    """Convert files of one form into one file of another; returns the number of rows.

    Raises:
        DataError: a file cannot be read, or rows cannot be said in the other form: all of them, and nothing is written
            but images, each under the name of its content.
        KeyError: an unknown form.
    """
    paths = list(inputs)
    problems: list[Problem] = []
    rows = partial(_converted, paths, source, target, folder, problems)
    count = FORMS[target].write(output, rows, folder, problems)
    if problems:
        raise DataError(list({problem: None for problem in problems}))  # rows may have been read twice
    return count


def _converted(
    paths: list[Path], source: str, target: str, folder: str, problems: list[Problem]
) -> Iterator[tuple[str, Row]]:
    """The rows that can be converted; what is wrong with the others goes to `problems`."""
    for path in paths:
        for where, row in FORMS[source].read(path, folder):
            if isinstance(row, Problem):
                problems.append(row)
                continue
            try:
                yield where, steps(row, source, target, folder)
            except Unfit as error:
                problems.append(Problem(where, *error.cells))


def steps(row: Row, source: str, target: str, folder: str) -> Row:
    """A row of one form in another, by way of the conversations form.

    Raises:
        Unfit: the other form cannot say what the row says.
    """

    def both_ways(form: str) -> list[Callable[[Row], Row]]:
        return [lambda one: FORMS[form].to_ours(one, folder), lambda one: FORMS[form].from_ours(one, folder)]

    if source != "jsonl":
        to_ours, from_ours = both_ways(source)
        row = convert_row(row, source, to_ours, from_ours, "jsonl")
    if target == "jsonl":
        return row
    if source != "jsonl":  # what is kept for the way back to the source belongs into a jsonl file only
        row = {name: value for name, value in row.items() if name != KEPT}
    to_ours, from_ours = both_ways(target)
    return convert_row(row, "jsonl", from_ours, to_ours, target)
