"""Local text files of rows: jsonl (lines are read on access), JSON arrays and csv (kept in memory).

A source has `len()`, `raw(index)` and `rows()`; a row that cannot be read is returned as a Problem.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import NewRow, Row

BOM = b"\xef\xbb\xbf"
RawRow = Row | Problem


class JsonlSource:
    """A jsonl file, opened in one pass that stores the offset of every non-blank line (8 bytes each).

    The file is reopened for each access, so that processes that share this object never share a file position.

    Raises:
        DataError: the file is missing, cannot be read, or has no rows.
    """

    def __init__(self, path: str | Path, config: ReaderConfig) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.config = config
        self.offsets, self.lines = _scan(self.path)

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, index: int) -> str:
        """Return `file:line` of a row, counted from 1."""
        return f"{self.name}:{index + 1 if self.lines is None else self.lines[index]}"

    def raw(self, index: int) -> RawRow:
        """Return the object in one line, or its problem."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return parse_line(file.readline(), self.where(index))

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows in order, in a single pass over the file."""
        with self.path.open("rb") as file:
            for index, offset in enumerate(self.offsets.tolist()):
                file.seek(offset)
                yield parse_line(file.readline(), self.where(index))


def content_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield line number (from 1), byte offset and content without a BOM of every non-blank line.

    Raises:
        DataError: the file is missing, cannot be read, or has no such line.
    """
    position, has_rows = 0, False
    try:
        check_regular(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                start = len(BOM) if line.startswith(BOM) else 0  # also within concatenated files
                content = line[start:] if start else line
                if content.strip():
                    has_rows = True
                    yield number, position + start, content
                position += len(line)
    except OSError as error:
        raise DataError([unreadable(path, error)]) from error
    if not has_rows:
        raise DataError([Problem(str(path), "file", f"{position} bytes without a row", "one JSON object on each line")])


def _scan(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the offsets of non-blank lines, and their line numbers unless these are 1, 2, 3, ..."""
    offsets = array("q")
    lines: array[int] | None = None
    for number, offset, _ in content_lines(path):
        if lines is None and number != len(offsets) + 1:
            lines = array("q", range(1, len(offsets) + 1))
        offsets.append(offset)
        if lines is not None:
            lines.append(number)
    return np.asarray(offsets, dtype=np.int64), None if lines is None else np.asarray(lines, dtype=np.int64)


def unreadable(path: Path, error: OSError) -> Problem:
    """Return the problem of a file that cannot be opened."""
    found = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return Problem(str(path), "file", found, "a file that can be read")


class RepeatedKeyError(ValueError):
    """A JSON object repeats a key, so that one value would be lost silently."""


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a dict from key-value pairs.

    Raises:
        RepeatedKeyError: a key is repeated.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"the key {twice!r:.60} occurs {names.count(twice)} times")
    return result


def parse_line(line: bytes, where: str) -> RawRow:
    """Parse the JSON object in a line of UTF-8; return it or its problem."""
    try:
        row = json.loads(line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=unique_keys)
        if b"\\ud" in line.lower():  # an unpaired surrogate, which no tokenizer accepts
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return Problem(where, "line", f"an unpaired surrogate, {error.object[error.start]!a}", "complete characters")
    except UnicodeDecodeError as error:
        return Problem(where, "line", f"{line[error.start]:#04x} at byte {error.start + 1}, not UTF-8", "UTF-8 text")
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 15) : error.pos + 15].strip()
        return Problem(where, "line", f"{error.msg} at column {error.colno}, near {near!r}", "one JSON object")
    except RepeatedKeyError as error:
        return Problem(where, "line", str(error), "every key once")
    except (ValueError, RecursionError) as error:
        return Problem(where, "line", str(error), "one JSON object")
    return row if isinstance(row, dict) else Problem(where, "line", type(row).__name__, "one JSON object")


class MemorySource:
    """Rows of a small file that is kept in memory."""

    def __init__(self, name: str, config: ReaderConfig, rows: list[RawRow], places: list[str]) -> None:
        self.name = name
        self.config = config
        self._rows = rows
        self._places = places

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Return the location of a row in its file."""
        return f"{self.name}{self._places[index]}"

    def raw(self, index: int) -> RawRow:
        """Return one row."""
        return self._rows[index]

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows in order."""
        return iter(self._rows)


def json_source(path: str | Path, config: ReaderConfig) -> JsonlSource | MemorySource:
    """Open a .json file: an array of objects, or one object per line.

    Raises:
        DataError: the file is missing, is not JSON, or has no rows.
    """
    try:
        check_regular(path)
        content = Path(path).read_bytes().removeprefix(BOM)
    except OSError as error:
        raise DataError([unreadable(Path(path), error)]) from error
    if not content.lstrip().startswith(b"["):
        return JsonlSource(path, config)
    try:
        items = json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            [Problem(f"{path}:{line}", "line", f"byte {error.start} is not UTF-8", "UTF-8 text")]
        ) from error
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}"
        raise DataError([Problem(f"{path}:{error.lineno}", "line", found, "an array of JSON objects")]) from error
    except RepeatedKeyError as error:
        raise DataError([Problem(str(path), "file", str(error), "every key of an object once")]) from error
    if not items:
        raise DataError([Problem(str(path), "file", "an empty array", "at least one row")])
    places = [f"[{number}]" for number in range(len(items))]
    rows: list[RawRow] = [
        item if isinstance(item, dict) else Problem(f"{path}{place}", "item", type(item).__name__, "a JSON object")
        for place, item in zip(places, items, strict=True)
    ]
    return MemorySource(str(path), config, rows, places)


def csv_source(path: str | Path, config: ReaderConfig) -> MemorySource:
    """Open a csv file with a header. Cells with a JSON list or object are decoded; empty cells are null.

    Raises:
        DataError: the file is missing, is not UTF-8, or has no rows.
    """
    numbers, rows = zip(*csv_rows(Path(path)), strict=True)
    return MemorySource(str(path), config, list(rows), [f":{number}" for number in numbers])


def csv_rows(path: Path) -> Iterator[tuple[int, RawRow]]:
    """Yield the rows of a csv file, one at a time, each with the number of its last line.

    Raises:
        DataError: as for `csv_source`; a row that cannot be read raises when it is reached.
    """
    csv.field_size_limit(2**31 - 1)  # base64 images are long cells
    count = 0
    try:
        check_regular(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            for row in reader:
                count += 1
                yield reader.line_num, _csv_row(row, f"{path}:{reader.line_num}")
    except OSError as error:
        raise DataError([unreadable(path, error)]) from error
    except UnicodeDecodeError as error:
        raise DataError([Problem(f"{path}:{count + 2}", "line", str(error), "UTF-8 text")]) from error
    except csv.Error as error:
        raise DataError([Problem(f"{path}:{count + 2}", "line", str(error), "a row of cells")]) from error
    if not count:
        raise DataError([Problem(str(path), "file", "no rows", "a header line and at least one row")])


def _csv_row(row: NewRow, where: str) -> RawRow:
    if "" in row and isinstance(row[""], list):
        return Problem(where, "line", f"{len(row[''])} cells more than the header", "one cell per column")
    try:
        return {name: _csv_cell(cell) for name, cell in row.items()}
    except RepeatedKeyError as error:
        return Problem(where, "line", str(error), "every key of an object once")


def _csv_cell(cell: str | None) -> object:
    if not cell:
        return None
    if cell[0] not in "[{":
        return cell
    try:
        return json.loads(cell, object_pairs_hook=unique_keys)
    except RepeatedKeyError:
        raise
    except (ValueError, RecursionError):
        return cell
