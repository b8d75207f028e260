"""Open paths, folders or a data set of the Hub as sources of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlm_grpo.data.errors import DataError, Problem, known_name
from vlm_grpo.data.parsing import ParsedRow, ReaderConfig, parse_raw_row
from vlm_grpo.data.paths import match_files, split_paths
from vlm_grpo.data.readers.text_files import JsonlSource, RawRow, csv_source, json_source
from vlm_grpo.rewards.accuracy import METHODS
from vlm_grpo.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset

WHOLE_FILE = re.compile(r"\.(?:jsonl|json|csv)@train$", re.IGNORECASE)
ROWS_SEARCHED = 1000  # per file, to find a column
SLICED = re.compile(r"@\w+\[[^\]]*\]$")  # org/name@train[:100], which has a colon but is one data set
READERS: dict[str, Callable[[str, ReaderConfig], Source]] = {
    ".jsonl": JsonlSource,
    ".json": json_source,
    ".csv": csv_source,
}


class Source(Protocol):
    """Rows by number; each is an object, or a problem if it cannot be read."""

    name: str
    config: ReaderConfig

    def __len__(self) -> int: ...
    def where(self, index: int) -> str: ...
    def raw(self, index: int) -> RawRow: ...
    def rows(self) -> Iterator[RawRow]: ...


@dataclass
class OpenResult:
    """The sources (or streams) that could be opened, and the problems of the others."""

    sources: list[Any] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def open_sources(
    source: str | Path | Sequence[str] | Dataset,
    *,
    image_folders: str | Sequence[str] | None = None,
    reward_method: str | Sequence[str] | None = None,
    config: ReaderConfig | None = None,
    opener: Callable[[str | Path | Dataset, ReaderConfig], object] | None = None,
) -> OpenResult:
    """Open all entries of `source`; only line offsets are read.

    Args:
        source: jsonl, json or csv files (`a.jsonl:b.jsonl` or a list), or one Hugging Face data set: `org/name@split`,
            a save_to_disk folder, a parquet file, a `datasets.Dataset`.
        image_folders: a folder for each file, or one for all; "" means absolute paths.
        reward_method: an accuracy method for each file, or one for all; "" means the default.
        config: keys, task and path rules of all files.
        opener: opens a file as another type than Source, such as a stream.

    Raises:
        KeyError: `config.task` is unknown.
    """
    config = config or ReaderConfig()
    _ = TASKS[config.task]
    entries: Sequence[str | Path | Dataset] = (
        [source] if not isinstance(source, str | list | tuple) else split_entries(source)
    )
    folder_entries = split_paths(image_folders)
    folders = match_files(
        rejoin_names(folder_entries) if isinstance(image_folders, str) else folder_entries, len(entries)
    )
    methods = match_files(split_paths(reward_method), len(entries))
    result = OpenResult(problems=_bad_options(len(entries), image_folders, folders, reward_method, methods))
    if result.problems or folders is None or methods is None:
        return result
    for entry, folder, method in zip(entries, folders, methods, strict=True):
        if str(entry) in ("", "."):
            result.problems.append(Problem("data", "files", "an empty name", "a path, or org/name@split"))
            continue
        try:
            result.sources.append((opener or _open)(entry, replace(config, folder=folder, method=method or None)))
        except DataError as error:
            result.problems += error.problems
    result.problems += _missing_columns(result.sources, config.ignored)
    return result


def _missing_columns(sources: list[Any], ignored: Sequence[str]) -> list[Problem]:
    """Return a warning for each ignored column that none of the first rows of a file has."""
    files = [source for source in sources if hasattr(source, "raw")]  # streams have no random access
    rows = [source.raw(row) for source in files for row in range(min(ROWS_SEARCHED, len(source)))] if ignored else []
    missing = [name for name in ignored if rows and not any(isinstance(row, dict) and name in row for row in rows)]
    expected = f"a column of the data, in one of the first {ROWS_SEARCHED} rows of a file"
    return [Problem("--ignore_columns", "column", repr(name), expected, True) for name in missing]


def split_entries(source: str | Sequence[str]) -> list[str]:
    """Split a string or list into its files; a string that exists as a path is one entry.

    `a.jsonl@train` is `a.jsonl`: RLLaVA appends a split to file names too, although a file has only one.
    """
    if isinstance(source, str) and (Path(source).exists() or SLICED.search(source)):
        return [source]
    entries = rejoin_names(split_paths(source)) if isinstance(source, str) else split_paths(source)
    return [entry.removesuffix("@train") if WHOLE_FILE.search(entry) else entry for entry in entries]


def rejoin_names(entries: list[str]) -> list[str]:
    """Rejoin names that contain a colon, i.e. that exist only when joined."""
    names: list[str] = []
    while entries:
        joined_counts = (n for n in range(len(entries), 1, -1) if Path(":".join(entries[:n])).exists())
        count = 1 if Path(entries[0]).exists() or not entries[0] else next(joined_counts, 1)
        names.append(":".join(entries[:count]))
        entries = entries[count:]
    return names


def _bad_options(
    files: int,
    image_folders: str | Sequence[str] | None,
    folders: list[str] | None,
    reward_method: str | Sequence[str] | None,
    methods: list[str] | None,
) -> list[Problem]:
    problems = []
    if not files:
        problems.append(Problem("data", "files", "none", "at least one file or data set"))
    for flag, value, paired in (("image_folders", image_folders, folders), ("reward_method", reward_method, methods)):
        if paired is None:
            found = f"{len(split_paths(value))} for {files} data files"
            problems.append(Problem(f"--{flag}", "number", found, f"1, or {files}, one for each file"))
    for folder in dict.fromkeys(folders or []):
        if folder and "://" not in folder and not Path(folder).is_dir():
            problems.append(Problem("--image_folders", "folder", repr(folder), "a folder that exists"))
    for method in dict.fromkeys(methods or []):
        if method and method not in METHODS:
            problems.append(Problem("--reward_method", "method", repr(method), known_name(method, list(METHODS))))
    return problems


def _open(entry: object, config: ReaderConfig) -> Source:
    from vlm_grpo.data.readers.hub import HubSource, hub_source

    if not isinstance(entry, str | Path):
        check_type(entry, "Dataset")
        return HubSource("dataset", entry, config)
    reader = READERS.get(Path(entry).suffix.lower())
    return hub_source(str(entry), config) if reader is None else reader(str(entry), config)


def check_type(entry: object, *allowed: str) -> None:
    """Check that an entry is an instance of one of these classes of `datasets`.

    Raises:
        TypeError: it is not.
    """
    kind = type(entry).__name__
    if kind not in allowed:
        raise TypeError(f"load_dataset: expected paths, a data set's name or a {' or '.join(allowed)}, got {kind}")


def parse_source_row(source: Source, index: int) -> ParsedRow:
    """Parse one row of a source."""
    return parse_raw_row(source.raw(index), source.where(index), index, source.config)
