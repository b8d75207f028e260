"""Hugging Face data: `org/name@split`, folders of save_to_disk, parquet and arrow files, without decoding images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.readers.text_files import RawRow, unreadable
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import NewRow

if TYPE_CHECKING:
    from datasets import Dataset

SAVED = ("state.json", "dataset_info.json")  # files that save_to_disk writes to the folder of a split
SAVED_DICT = "dataset_dict.json"
CHUNK = 32  # rows in memory at a time


class HubSource:
    """Rows of a Hugging Face data set as stored in Arrow: images are `{bytes, path}`, at any depth.

    Arrow values are read directly instead of casting image features to `decode=False`, which would rewrite data sets
    whose images are inside lists or messages. Class labels are replaced by their names.
    """

    def __init__(self, name: str, dataset: Dataset, config: ReaderConfig) -> None:
        if not len(dataset):
            raise DataError([Problem(name, "dataset", "no rows", "at least one row")])
        self.name = name
        self.config = config
        self.labels = label_names(dataset)
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def where(self, index: int) -> str:
        """Return `name[number]` of a row."""
        return f"{self.name}[{index}]"

    def raw(self, index: int) -> RawRow:
        """Return one row."""
        return named_labels(self.dataset[index].to_pylist()[0], self.labels)

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows in order, a few at a time."""
        return arrow_rows(self.dataset, self.labels)


def arrow_rows(dataset: Dataset, labels: dict[str, list[str]]) -> Iterator[NewRow]:
    """Yield all rows of a data set in Arrow's format, a few at a time."""
    for table in dataset.iter(batch_size=CHUNK):
        for row in table.to_pylist():
            yield named_labels(row, labels)


def label_names(dataset: Dataset) -> dict[str, list[str]]:
    """Return the label names of each ClassLabel column."""
    features = dataset.features or {}
    return {key: feature.names for key, feature in features.items() if type(feature).__name__ == "ClassLabel"}


def named_labels(row: NewRow, labels: dict[str, list[str]]) -> NewRow:
    """Replace class label numbers by their names, in place, and return the row."""
    for key, names in labels.items():
        if row[key] is not None and row[key] >= 0:
            row[key] = names[row[key]]
    return row


def split_name(source: str) -> tuple[str, str | None]:
    """Return name and split of `name@split`; the split is None without one."""
    name, at, split = source.rpartition("@")
    return (name, split) if at and name else (source, None)


def hub_source(source: str, config: ReaderConfig) -> HubSource:
    """Open a folder, a parquet or arrow file, or a data set on the Hub.

    Raises:
        DataError: it does not exist, cannot be read, or has several splits and none or an unknown one is selected.
    """
    return HubSource(source, hub_dataset(source), config)


def hub_dataset(source: str, **options: Any) -> Dataset:
    """Load the data set of `hub_source`; `streaming=True` reads it lazily, without download or copy.

    Raises:
        DataError: as for `hub_source`.
    """
    if Path(source).exists():
        return _local(Path(source), None, source, options)
    name, split = split_name(source)
    if split is not None and Path(name).suffix.lower() in (".jsonl", ".json", ".csv"):
        raise DataError([Problem(source, "split", repr(split), "no split, or train: a file has no other")])
    if Path(name).exists():
        return _local(Path(name), split, source, options)
    if is_path(name):
        raise DataError([Problem(source, "dataset", "no such file or folder", "a file, a folder, or org/name@split")])
    return _load(source, name, split=split or "train", **options)


def is_path(name: str) -> bool:
    """Return whether a name that does not exist looks like a local path rather than `org/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in (".parquet", ".arrow")


def _local(path: Path, split: str | None, source: str, options: dict[str, Any]) -> Dataset:
    if not path.is_dir():
        _check_regular(path)
    if path.suffix in (".parquet", ".arrow"):
        return _load(source, path.suffix[1:], data_files=str(path), split="train", **options)
    if (path / SAVED_DICT).is_file() or all((path / name).is_file() for name in SAVED):
        return _from_disk(path, split, source)  # memory-mapped
    return _load(source, str(path), split=split or "train", **options)


def _check_regular(path: Path) -> None:
    try:
        check_regular(path)
    except OSError as error:
        raise DataError([unreadable(path, error)]) from error


def _from_disk(path: Path, split: str | None, source: str) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError([Problem(source, "dataset", str(error), "a folder made by save_to_disk")]) from error
    if not isinstance(loaded, DatasetDict):
        if split is not None:
            raise DataError([Problem(source, "split", repr(split), "no split: this folder holds a single one")])
        return loaded
    splits = list(loaded)
    name = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if name not in loaded:
        found = "none given" if split is None else repr(split)
        raise DataError([Problem(source, "split", found, f"{path}@ and one of {', '.join(splits)}")])
    return loaded[name]


def _load(source: str, name: str, **options: Any) -> Dataset:
    import datasets

    try:
        return datasets.load_dataset(name, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        found = f"{type(cause).__name__}: {cause}"
        raise DataError([Problem(source, "dataset", found, "a data set that can be loaded")]) from error
