"""Data larger than memory: sources read line by line, once per pass, and rows made as they go by. Nothing is kept.

A jsonl file costs 8 bytes a line without this, so that streaming is for files that nobody wants to read twice, and for
parquet files and hub data that would be copied to the disk first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.check import check_reading
from vlm_grpo.data.forms import Form, Reading
from vlm_grpo.data.hub import arrow_rows, hub_dataset, label_names
from vlm_grpo.data.jsonl import RawRow, content_lines, csv_rows, parse_line
from vlm_grpo.data.problems import DataError, Problem
from vlm_grpo.data.rows import RowMaker, as_reading
from vlm_grpo.data.sources import check_type
from vlm_grpo.prompts import PromptTemplate

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stream:
    """One file or data set: `read()` begins a new pass over its rows, each with where it stands."""

    form: Form
    read: Callable[[], Iterator[tuple[str, RawRow]]]

    def readings(self, *, check: bool) -> Iterator[Reading]:
        """What becomes of each row in order; with `check`, its images and videos are looked at too."""
        for number, (where, raw) in enumerate(self.read()):
            reading = as_reading(raw, where, number, self.form)
            yield reading._replace(problems=check_reading(reading)) if check else reading


def open_stream(entry: Any, form: Form) -> Stream:
    """The stream of a jsonl or csv file, or of Hugging Face data. Its first row is read, to see that there is one.

    Raises:
        DataError: it does not exist, cannot be read, has no rows, or is an array that only can be read as a whole.
    """
    stream = Stream(form, _reader(entry))
    if next(stream.read(), None) is None:
        raise DataError([Problem(str(entry), "dataset", "no rows", "at least one row")])
    return stream


def _reader(entry: Any) -> Callable[[], Iterator[tuple[str, RawRow]]]:
    if not isinstance(entry, str | Path):
        check_type(entry, "Dataset", "IterableDataset")
        return partial(_hub_rows, "dataset", entry)
    suffix = Path(entry).suffix.lower()
    if suffix == ".csv":
        return partial(_csv_rows, Path(entry))
    if suffix == ".json":
        _refuse_array(Path(entry))
    if suffix in (".json", ".jsonl"):
        return partial(_jsonl_rows, Path(entry))
    return partial(_hub_rows, str(entry), hub_dataset(str(entry), streaming=True))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, RawRow]]:
    for number, _, line in content_lines(path):
        where = f"{path}:{number}"
        yield where, parse_line(line, where)


def _csv_rows(path: Path) -> Iterator[tuple[str, RawRow]]:
    return ((f"{path}:{number}", row) for number, row in csv_rows(path))


def _refuse_array(path: Path) -> None:
    _, _, line = next(content_lines(path))
    if line.lstrip().startswith(b"["):
        expected = "one JSON object on each line: an array can only be read as a whole, so leave --streaming out"
        raise DataError([Problem(str(path), "file", "a JSON array", expected)])


def _hub_rows(name: str, dataset: Any) -> Iterator[tuple[str, RawRow]]:
    """Rows as Arrow stores them, as `HubSource` reads them."""
    labels, count = label_names(dataset), 0
    try:
        for row in arrow_rows(dataset.with_format("arrow"), labels):
            yield f"{name}[{count}]", row
            count += 1
    except (OSError, ValueError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError([Problem(f"{name}[{count}]", "row", found, "a row that can be read")]) from error


class StreamedRows:
    """A pass over streams, one after the other: calling it gives the rows, made as `RowMaker` makes them.

    Raises:
        DataError: when a row is reached that is no record, or with `check` one whose image is missing or damaged.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        prompt: PromptTemplate | None = None,
        *,
        check: bool = True,
        think_tags: bool = True,
    ) -> None:
        self.streams = list(streams)
        self.make = RowMaker((), prompt, think_tags=think_tags).row
        self.check = check
        self.warned: set[str] = set()

    def __call__(self) -> Iterator[dict[str, Any]]:
        for stream in self.streams:
            for reading in stream.readings(check=self.check):
                if any(not problem.is_warning for problem in reading.problems):
                    raise DataError(reading.problems)
                self._warn(reading.problems)
                yield self.make(reading.record)

    def first_problems(self) -> list[Problem]:
        """What is wrong with the first row of each stream: wrong keys or folders show there."""
        return [p for stream in self.streams for p in next(stream.readings(check=self.check)).problems]

    def _warn(self, problems: Sequence[Problem]) -> None:
        """Once for each kind, at the first row that has it."""
        for problem in problems:
            if problem.expected not in self.warned:
                self.warned.add(problem.expected)
                logger.warning("%s: %s: expected %s; more such rows may follow", *problem.cells[::2], problem.expected)


def iterable_dataset(rows: Callable[[], Iterator[dict[str, Any]]]) -> IterableDataset:
    """A stream of the rows that each call of `rows` begins anew. It is one shard, whatever is behind it.

    Rows may hold any object: without features, nothing turns them into Arrow. A single shard is read by every process
    as a whole, so that TRL gives each its part of the same groups; of several shards each process would get some, and
    repeat the same prompts once for each process while it never reaches the others.
    """
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable  # `from_generator` would pickle `rows` to name a cache

    return IterableDataset(ExamplesIterable(_numbered, {"rows": rows}))


def _numbered(rows: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    return (((0, number), row) for number, row in enumerate(rows()))
