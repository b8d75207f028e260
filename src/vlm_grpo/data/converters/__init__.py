"""Lossless conversion between data files of other systems and this package's jsonl (conversations format)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlm_grpo.data.converters import llava, parquet, swift
from vlm_grpo.data.converters.roundtrip import ROUNDTRIP, UnsupportedField, convert_row
from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.readers.text_files import JsonlSource, RawRow, json_source
from vlm_grpo.io import json_line, whole_file
from vlm_grpo.records import Row
from vlm_grpo.registry import Registry

RowFactory = Callable[[], Iterator[tuple[str, Row]]]


@dataclass(frozen=True)
class FileFormat:
    """Readers, writers and converters of one file format. `folder` is the image folder.

    Attributes:
        read: (path, folder) to pairs of location and row, or the problem of the row.
        write: (path, rows, folder, problems) to the number of rows; with problems no file is written.
        to_jsonl, from_jsonl: (row, folder) to a row in the conversations format, and back.
        uses_folder, needs_folder: whether the image folder has an effect; whether it is required.
    """

    read: Callable[[Path, str], Iterator[tuple[str, RawRow]]]
    write: Callable[[Path, RowFactory, str, list[Problem]], int]
    to_jsonl: Callable[[Row, str], Row]
    from_jsonl: Callable[[Row, str], Row]
    uses_folder: bool = False
    needs_folder: bool = False


def read_jsonl(path: Path, folder: str) -> Iterator[tuple[str, RawRow]]:
    """Yield the objects in the lines of a file."""
    source = JsonlSource(path, ReaderConfig())
    return ((source.where(number), row) for number, row in enumerate(source.rows()))


def read_json(path: Path, folder: str) -> Iterator[tuple[str, RawRow]]:
    """Yield the objects in a JSON array, or in the lines of a file."""
    source = json_source(path, ReaderConfig())
    return ((source.where(number), row) for number, row in enumerate(source.rows()))


def write_jsonl(path: Path, rows: RowFactory, folder: str, problems: list[Problem]) -> int:
    """Write one row per line; return the number of rows."""
    return _write(path, rows, problems, start=b"", between=b"", end=b"")


def write_json(path: Path, rows: RowFactory, folder: str, problems: list[Problem]) -> int:
    """Write one JSON array with a line per row; return the number of rows."""
    return _write(path, rows, problems, start=b"[\n", between=b", ", end=b"]\n")


class _Abort(Exception):
    """Abort writing and discard the file."""


def _write(path: Path, rows: RowFactory, problems: list[Problem], *, start: bytes, between: bytes, end: bytes) -> int:
    count = 0
    try:
        with whole_file(path) as file:
            file.write(start)
            for where, row in rows():
                try:
                    line = json_line(row)
                except (TypeError, ValueError) as error:
                    problems.append(Problem(where, "row", str(error), "values that JSON can represent"))
                    continue
                file.write(between + line if count else line)
                count += 1
            file.write(end)
            if problems:
                raise _Abort
    except _Abort:
        return 0
    return count


FORMATS: Registry[FileFormat] = Registry(
    "file form",
    {
        "jsonl": FileFormat(read_jsonl, write_jsonl, lambda row, folder: row, lambda row, folder: row),
        "parquet": FileFormat(
            parquet.read_parquet,
            parquet.write_parquet,
            lambda row, folder: parquet.to_jsonl(row),
            lambda row, folder: parquet.from_jsonl(row),
            uses_folder=True,
            needs_folder=True,
        ),
        "swift": FileFormat(read_jsonl, write_jsonl, swift.to_jsonl, swift.from_jsonl, uses_folder=True),
        "llava": FileFormat(
            read_json, write_json, lambda row, folder: llava.to_jsonl(row), lambda row, folder: llava.from_jsonl(row)
        ),
    },
)


def convert_files(inputs: Iterable[Path], output: Path, source: str, target: str, folder: str) -> int:
    """Convert files of one format into one file of another; return the number of rows.

    Raises:
        DataError: a file cannot be read, or rows cannot be represented in the other format. All problems are listed;
            nothing is written except images, each named by its content.
        KeyError: the format is unknown.
    """
    paths = list(inputs)
    problems: list[Problem] = []
    rows = partial(_converted, paths, source, target, folder, problems)
    count = FORMATS[target].write(output, rows, folder, problems)
    if problems:
        raise DataError(list({problem: None for problem in problems}))  # rows may have been read twice
    return count


def _converted(
    paths: list[Path], source: str, target: str, folder: str, problems: list[Problem]
) -> Iterator[tuple[str, Row]]:
    """Yield the rows that can be converted; append the others to `problems`."""
    for path in paths:
        for where, row in FORMATS[source].read(path, folder):
            if isinstance(row, Problem):
                problems.append(row)
                continue
            try:
                yield where, convert_between(row, source, target, folder)
            except UnsupportedField as error:
                problems.append(Problem(where, *error.cells))


def convert_between(row: Row, source: str, target: str, folder: str) -> Row:
    """Convert a row between two formats via the conversations format.

    Raises:
        UnsupportedField: the other format cannot represent the row.
    """

    def both_ways(name: str) -> list[Callable[[Row], Row]]:
        file_format = FORMATS[name]
        return [lambda one: file_format.to_jsonl(one, folder), lambda one: file_format.from_jsonl(one, folder)]

    if source != "jsonl":
        to_jsonl, from_jsonl = both_ways(source)
        row = convert_row(row, source, to_jsonl, from_jsonl, "jsonl")
    if target == "jsonl":
        return row
    if source != "jsonl":  # only jsonl files store metadata for the way back
        row = {name: value for name, value in row.items() if name != ROUNDTRIP}
    to_jsonl, from_jsonl = both_ways(target)
    return convert_row(row, "jsonl", from_jsonl, to_jsonl, target)
