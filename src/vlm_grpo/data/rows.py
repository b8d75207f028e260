"""From records to the rows that trainers see. A row is made when it is asked for; images stay undecoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.forms import Form, Reading, read_row
from vlm_grpo.data.problems import DataError, Problem
from vlm_grpo.data.sources import Source
from vlm_grpo.prompts import PROMPTS, PromptTemplate
from vlm_grpo.records import Record
from vlm_grpo.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

# Names that trainers pass to rewards themselves, or that a row uses: an extra column of that name stays in the record.
ROW = ("prompt", "images", "videos", "record", "id", "answer", "task", "where")
TRAINER = (
    "prompts",
    "completion",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "turn_opening",
    "whole_turns",
)
RESERVED = frozenset((*ROW, *TRAINER, "image", "video", "environments", "tools", "chat_template_kwargs"))


class RowMaker:
    """The transform of a data set of row numbers: calling it with a batch of numbers gives the rows as columns.

    It can be pickled, so that loader processes make rows themselves. `think_tags` says whether prompts of tasks ask
    for <think> tags.
    """

    def __init__(
        self, sources: Sequence[Source], prompt: PromptTemplate | None = None, *, think_tags: bool = True
    ) -> None:
        self.sources = list(sources)
        self.prompt = prompt
        self.think_tags = think_tags
        self.ends = list(accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Columns of the rows; equal numbers share one record, a column that some rows lack is None there."""
        numbers = [int(number) for number in batch["row"]]
        records = {number: self.record(number) for number in dict.fromkeys(numbers)}
        rows = [self.row(records[number]) for number in numbers]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def record(self, number: int) -> Record:
        """The record with a number that counts through all sources.

        Raises:
            DataError: the row is no record; the message names its line.
        """
        part = bisect_right(self.ends, number)
        source = self.sources[part]
        reading = read_source(source, number - (self.ends[part - 1] if part else 0))
        if reading.record is None:
            raise DataError(reading.problems)
        return reading.record

    def row(self, record: Record) -> dict[str, Any]:
        """What trainers and rewards get of a record."""
        task = TASKS[record.task]
        prompt = self.prompt or PROMPTS[task.prompt]
        return {
            "prompt": prompt.render(record, system=task.system, think_tags=self.think_tags),
            "images": list(record.images),
            "videos": list(record.videos),
            "record": record,
            "id": record.id,
            "answer": record.answer,
            "task": record.task,
            "where": record.where,
            **{name: value for name, value in record.extra.items() if name not in RESERVED},
        }


def read_source(source: Source, index: int) -> Reading:
    """The record of one row of a source, or what is wrong with it."""
    return as_reading(source.raw(index), source.where(index), index, source.form)


def as_reading(raw: Mapping[str, Any] | Problem, where: str, number: int, form: Form) -> Reading:
    """The same for a row that has been fetched already."""
    return Reading(None, [raw]) if isinstance(raw, Problem) else read_row(raw, where, number, form)


def row_dataset(maker: RowMaker, numbers: np.ndarray | None = None) -> Dataset:
    """A data set that holds row numbers only and makes its rows with `maker`; select, shuffle and split as usual.

    `numbers`, (rows,) of int64, say which rows in which order; None is every row once.
    """
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    numbers = np.arange(len(maker), dtype=np.int64) if numbers is None else numbers
    return Dataset(pa.table({"row": pa.array(numbers)})).with_transform(maker)


def val_split(dataset: Dataset, ratio: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows, each in their old order; the same on every rank for the same seed.

    Raises:
        ValueError: the ratio leaves one of the two empty.
    """
    import numpy as np

    total = len(dataset)
    held_out = round(total * ratio)
    if not 0 < ratio < 1 or not 0 < held_out < total:
        raise ValueError(
            f"--val_split_ratio must be between 0 and 1 and leave rows on both sides, got {ratio} for {total} rows"
        )
    order = np.random.default_rng(seed).permutation(total)
    return dataset.select(np.sort(order[held_out:])), dataset.select(np.sort(order[:held_out]))
