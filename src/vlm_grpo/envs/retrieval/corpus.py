"""Read documents: folders of text files, rows of jsonl, json and csv files, and Hugging Face datasets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlm_grpo.data.errors import DataError, Problem, show_value
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.readers import Source
from vlm_grpo.data.readers.hub import SAVED, SAVED_DICT, hub_source
from vlm_grpo.data.readers.text_files import JsonlSource, csv_source, json_source, unreadable
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import Row

TEXTS = (".txt", ".md")
ROWS = {".jsonl": JsonlSource, ".json": json_source, ".csv": csv_source}
HEADING = re.compile(r"#\s+(.+)")
MAX_PASSAGE_LENGTH = 2000  # characters; longer documents are split into several passages
BREAKS = ("\n\n", "\n", ". ", "。", " ")  # preferred positions for splitting, the best first


class Document(NamedTuple):
    """One document. Its text may be of any length."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class ColumnNames:
    """Column names; None means the usual name (`id`, `title`, `text`), of which only `text` is required."""

    id: str | None = None
    title: str | None = None
    text: str | None = None


def read_documents(sources: Sequence[str], keys: ColumnNames | None = None) -> Iterator[Document | Problem]:
    """Yield all documents of the sources in order, or their problems.

    The id of a text file is its path starting with the folder's name, that of a row without an id is its number; the
    title of a text file is its first line if that is a heading (`# ...`), else its name.
    """
    where: dict[str, str] = {}
    for source in sources:
        try:
            for place, document in _read(source, keys or ColumnNames(), where):
                if isinstance(document, Document) and document.id in where:
                    document = Problem(
                        place, "id", f"{show_value(document.id)}, as at {where[document.id]}", "a unique id"
                    )
                if isinstance(document, Document):
                    where[document.id] = place
                yield document
        except DataError as error:
            yield from error.problems


def _read(source: str, keys: ColumnNames, known: Mapping[str, str]) -> Iterator[tuple[str, Document | Problem]]:
    path = Path(source)
    if path.is_dir() and not any((path / name).exists() for name in (*SAVED, SAVED_DICT)):
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXTS and file.is_file())
        if files:
            start = path.resolve()
            names = [(Path(start.name) / file.relative_to(path)).as_posix() for file in files]
            return ((str(file), _text_file(file, name)) for file, name in zip(files, names, strict=True))
    if path.suffix.lower() in TEXTS:
        return iter([(source, _text_file(path, path.name))])
    rows = ROWS.get(path.suffix.lower(), hub_source)(source, ReaderConfig())
    return _rows(rows, keys, known)


def _text_file(path: Path, name: str) -> Document | Problem:
    try:
        check_regular(path)
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return unreadable(path, error)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return Problem(f"{path}:{line}", "file", f"byte {error.start} is not UTF-8", "UTF-8 text")
    if not text.strip():
        return Problem(str(path), "file", "no text", "some text")
    heading = HEADING.match(text.lstrip())
    return Document(name, heading[1].strip() if heading else path.stem, text)


def _rows(source: Source, keys: ColumnNames, known: Mapping[str, str]) -> Iterator[tuple[str, Document | Problem]]:
    for number, row in enumerate(source.rows()):
        where = source.where(number)
        yield where, row if isinstance(row, Problem) else _document(row, where, keys, str(len(known)))


def _document(row: Row, where: str, keys: ColumnNames, number: str) -> Document | Problem:
    """Return the document in a row, or one problem that lists all its errors."""
    values = {}
    for name, column_name, default in (("id", keys.id, number), ("title", keys.title, ""), ("text", keys.text, None)):
        column = column_name or name
        value = row.get(column, None if column_name else default)
        if name == "id" and type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            value_text = show_value(value) if column in row else f"the columns {', '.join(map(str, row)) or 'none'}"
            return Problem(where, column, value_text, f"text, or another column: --{name}_key")
        values[name] = value
    if not values["text"].strip() and not values["title"].strip():
        return Problem(where, keys.text or "text", "no text", "some text")
    return Document(**values)


def split_passages(text: str) -> Iterator[str]:
    """Yield passages of at most MAX_PASSAGE_LENGTH characters, cut at paragraphs, lines, sentences or words."""
    text = unicodedata.normalize("NFC", text).strip()
    start = 0
    while len(text) - start > MAX_PASSAGE_LENGTH:
        cut = _passage_end(text, start)
        yield text[start:cut].strip()
        start = cut
    yield text[start:].strip()


def _passage_end(text: str, start: int) -> int:
    """Return the end of the passage from `start`: the best break in its second half, else MAX_PASSAGE_LENGTH."""
    half, end = start + MAX_PASSAGE_LENGTH // 2, start + MAX_PASSAGE_LENGTH
    for mark in BREAKS:
        at = text.rfind(mark, half, end)
        if at >= 0:
            return at + len(mark.rstrip())
    return end
