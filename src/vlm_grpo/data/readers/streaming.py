"""Read data larger than memory: every source is read line by line, once per pass, without caching.

Without streaming, a jsonl file needs 8 bytes of memory per line. Streaming is for files that should not be read twice,
and for parquet files and Hub data that would otherwise be copied to disk first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.parsing import ParsedRow, ReaderConfig, parse_raw_row
from vlm_grpo.data.readers import check_type
from vlm_grpo.data.readers.hub import arrow_rows, hub_dataset, label_names
from vlm_grpo.data.readers.text_files import RawRow, content_lines, csv_rows, parse_line
from vlm_grpo.data.validation import check_row

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Stream:
    """One file or data set; `read()` starts a new pass over (location, row) pairs."""

    config: ReaderConfig
    read: Callable[[], Iterator[tuple[str, RawRow]]]

    def parsed_rows(self, *, check: bool) -> Iterator[ParsedRow]:
        """Parse each row in order; with `check`, validate its images and videos too."""
        for number, (where, raw) in enumerate(self.read()):
            parsed = parse_raw_row(raw, where, number, self.config)
            yield parsed._replace(problems=check_row(parsed)) if check else parsed


def open_stream(entry: object, config: ReaderConfig) -> Stream:
    """Return the stream of a jsonl or csv file, or of Hugging Face data, after checking that it has a first row.

    Raises:
        DataError: it does not exist, cannot be read, has no rows, or is a JSON array, which cannot be streamed.
    """
    stream = Stream(config, _reader(entry))
    if next(stream.read(), None) is None:
        raise DataError([Problem(str(entry), "dataset", "no rows", "at least one row")])
    return stream


def _reader(entry: object) -> Callable[[], Iterator[tuple[str, RawRow]]]:
    if not isinstance(entry, str | Path):
        check_type(entry, "Dataset", "IterableDataset")
        return partial(_hub_rows, "dataset", entry)
    suffix = Path(entry).suffix.lower()
    if suffix == ".csv":
        return partial(_csv_rows, Path(entry))
    if suffix == ".json":
        _check_not_array(Path(entry))
    if suffix in (".json", ".jsonl"):
        return partial(_jsonl_rows, Path(entry))
    return partial(_hub_rows, str(entry), hub_dataset(str(entry), streaming=True))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, RawRow]]:
    for number, _, line in content_lines(path):
        where = f"{path}:{number}"
        yield where, parse_line(line, where)


def _csv_rows(path: Path) -> Iterator[tuple[str, RawRow]]:
    return ((f"{path}:{number}", row) for number, row in csv_rows(path))


def _check_not_array(path: Path) -> None:
    _, _, line = next(content_lines(path))
    if line.lstrip().startswith(b"["):
        expected = "one JSON object per line: arrays cannot be streamed, so remove --streaming"
        raise DataError([Problem(str(path), "file", "a JSON array", expected)])


def _hub_rows(name: str, dataset: Dataset) -> Iterator[tuple[str, RawRow]]:
    """Yield rows as stored in Arrow, like `HubSource`."""
    labels, count = label_names(dataset), 0
    try:
        for row in arrow_rows(dataset.with_format("arrow"), labels):
            yield f"{name}[{count}]", row
            count += 1
    except (OSError, ValueError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError([Problem(f"{name}[{count}]", "row", found, "a row that can be read")]) from error
