"""Reading data: source files to records, records to lazily made rows that hold paths or undecoded bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.jsonl import DataError, JsonlSource, Problem
from vlm_grpo.prompts import PromptTemplate, load_prompt
from vlm_grpo.records import Record
from vlm_grpo.rewards.accuracy import METHODS
from vlm_grpo.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataError", "Problem", "jsonl_sources", "load_dataset", "split_paths", "val_split"]


def split_paths(value: str | Sequence[str] | None) -> list[str]:
    """Paths separated by ':'; a URL's and a drive letter's colon does not separate."""
    if value is None:
        return []
    if not isinstance(value, str):
        return [str(part) for part in value]
    parts: list[str] = []
    for piece in value.split(":"):
        drive = bool(parts) and len(parts[-1]) == 1 and parts[-1].isalpha() and piece[:1] in ("/", "\\")
        if parts and (piece.startswith("//") or drive):
            parts[-1] += f":{piece}"
        else:
            parts.append(piece)
    return parts


def jsonl_sources(
    paths: str | Sequence[str],
    image_folders: str | Sequence[str] | None = None,
    reward_method: str | Sequence[str] | None = None,
    task: str = "default",
    allow_outside: bool = False,
) -> list[JsonlSource]:
    """One source per file, paired by position with folders and methods; a single folder or method serves all.

    Raises:
        DataError: a file is missing or empty.
        ValueError: the numbers do not match, or a method is unknown.
    """
    files = split_paths(paths)
    folders = _paired("image_folders", split_paths(image_folders) or [""], files)
    methods = _paired("reward_method", split_paths(reward_method) or [""], files)
    for method in methods:
        if method:
            _ = METHODS[method]
    return [
        JsonlSource(Path(path), folder, method or None, task, allow_outside)
        for path, folder, method in zip(files, folders, methods, strict=True)
    ]


def _paired(name: str, values: list[str], files: list[str]) -> list[str]:
    if len(values) not in (1, len(files)):
        raise ValueError(f"--{name}: {len(values)} given for {len(files)} data files; give one, or one for each file")
    return values * len(files) if len(values) == 1 else values


@dataclass(frozen=True)
class RowMaker:
    """Turns row numbers into rows; it is the data set's transform and travels to loader processes."""

    sources: list[JsonlSource]
    prompt: PromptTemplate

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Columns of the numbered rows; a column that some rows lack is None there."""
        rows = [row_of(self.read(number), self.prompt) for number in batch["row"]]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def read(self, number: int) -> Record:
        """The record of a row number that counts through all sources."""
        for source in self.sources:
            if number < len(source):
                return source.read(number)
            number -= len(source)
        raise IndexError(number)


def row_of(record: Record, prompt: PromptTemplate) -> dict[str, Any]:
    """What the trainers and rewards get of a record."""
    return {
        **record.extra,
        "prompt": prompt.render(record),
        "images": list(record.images),
        "record": record,
        "id": record.id,
        "answer": record.answer,
        "task": record.task,
        "where": record.where,
    }


def load_dataset(
    source: str | Sequence[str],
    *,
    image_folders: str | Sequence[str] | None = None,
    reward_method: str | Sequence[str] | None = None,
    task: str = "default",
    format_prompt: str | None = None,
    allow_outside: bool = False,
    check: bool = True,
) -> Dataset:
    """A data set of lazily made rows from jsonl files (`a.jsonl:b.jsonl` or a list).

    Raises:
        DataError: something is wrong with the data; all of it is listed.
        KeyError: an unknown task or accuracy method.
    """
    from datasets import Dataset

    prompt = load_prompt(format_prompt) if format_prompt else TASKS[task].prompt
    sources = jsonl_sources(source, image_folders, reward_method, task, allow_outside)
    if check and (problems := [problem for part in sources for problem in part.problems()]):
        raise DataError(problems)
    numbers = list(range(sum(len(part) for part in sources)))
    return Dataset.from_dict({"row": numbers}).with_transform(RowMaker(sources, prompt))


def val_split(dataset: Dataset, ratio: float, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out rows; the same on every rank for the same seed.

    Raises:
        ValueError: the ratio leaves one side empty.
    """
    held_out = round(len(dataset) * ratio)
    if not 0 < held_out < len(dataset):
        raise ValueError(f"--val_split_ratio {ratio} of {len(dataset)} rows leaves one side empty")
    parts = dataset.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]
