"""Data sets of rows for the trainers. Rows are built on access; images are not decoded."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.mixture import file_shares, mixture_numbers
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.readers import Source, open_sources, parse_source_row
from vlm_grpo.data.readers.streaming import Stream, open_stream
from vlm_grpo.data.validation import check_rows
from vlm_grpo.prompts import PROMPTS, PromptTemplate, load_prompt
from vlm_grpo.records import NewRow, Record, Row
from vlm_grpo.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, IterableDataset

    from vlm_grpo.data.readers import OpenResult

logger = logging.getLogger(__name__)

# Names reserved by trainers or rows: an extra column with such a name is only available in the record.
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


class RowTransform:
    """Transform of a data set of row numbers: maps a batch of numbers to the columns of these rows.

    It can be pickled for loader processes. `think_tags`: whether task prompts ask for <think> tags.
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

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[object]]:
        """Return the columns of the rows; equal numbers share a record, missing columns are None."""
        numbers = [int(number) for number in batch["row"]]
        records = {number: self.record(number) for number in dict.fromkeys(numbers)}
        rows = [self.row(records[number]) for number in numbers]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def record(self, number: int) -> Record:
        """Return the record with this number, counted over all sources.

        Raises:
            DataError: the row cannot be parsed; the message names its line.
        """
        part = bisect_right(self.ends, number)
        source = self.sources[part]
        parsed = parse_source_row(source, number - (self.ends[part - 1] if part else 0))
        if parsed.record is None:
            raise DataError(parsed.problems)
        return parsed.record

    def row(self, record: Record) -> NewRow:
        """Return the row of a record for trainers and rewards."""
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


def row_dataset(maker: RowTransform, numbers: np.ndarray | None = None) -> Dataset:
    """Return a data set whose rows are built by `maker` on access; select, shuffle and split work as usual.

    `numbers`, (rows,) of int64, select and order the rows; None is every row once.
    """
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    numbers = np.arange(len(maker), dtype=np.int64) if numbers is None else numbers
    return Dataset(pa.table({"row": pa.array(numbers)})).with_transform(maker)


def val_split(dataset: Dataset, ratio: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return training rows and held-out rows in their original order; deterministic for a seed on all ranks.

    Raises:
        ValueError: one of the splits would be empty.
    """
    import numpy as np

    total = len(dataset)
    held_out = round(total * ratio)
    if not 0 < ratio < 1 or not 0 < held_out < total:
        raise ValueError(
            f"--val_split_ratio must be between 0 and 1 and leave rows in both splits, got {ratio} for {total} rows"
        )
    order = np.random.default_rng(seed).permutation(total)
    return dataset.select(np.sort(order[held_out:])), dataset.select(np.sort(order[:held_out]))


class StreamedRows:
    """Rows of several streams, one stream after the other; each call starts a new pass.

    Raises:
        DataError: a row cannot be parsed or, with `check`, its image is missing or corrupt.
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
        self.make = RowTransform((), prompt, think_tags=think_tags).row
        self.check = check
        self.warned: set[str] = set()

    def __call__(self) -> Iterator[NewRow]:
        for stream in self.streams:
            for parsed in stream.parsed_rows(check=self.check):
                if parsed.record is None or any(not problem.is_warning for problem in parsed.problems):
                    raise DataError(parsed.problems)
                self._warn(parsed.problems)
                yield self.make(parsed.record)

    def first_problems(self) -> list[Problem]:
        """Return the problems of the first row of each stream, which reveal wrong keys or folders."""
        return [p for stream in self.streams for p in next(stream.parsed_rows(check=self.check)).problems]

    def _warn(self, problems: Sequence[Problem]) -> None:
        """Log each kind of warning once, at the first row that has it."""
        for problem in problems:
            if problem.expected not in self.warned:
                self.warned.add(problem.expected)
                logger.warning("%s: %s: expected %s; more such rows may follow", *problem.cells[::2], problem.expected)


def iterable_dataset(rows: Callable[[], Iterator[Row]]) -> IterableDataset:
    """Return an `IterableDataset` of one shard; each pass calls `rows` again.

    Rows may contain any object: without features, nothing converts them to Arrow. Every process reads the single shard
    completely, so that TRL distributes the same groups. With several shards each process would get only some of
    them and repeat their prompts.
    """
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable  # `from_generator` would pickle `rows` to name a cache

    return IterableDataset(ExamplesIterable(_numbered, {"rows": rows}))


def _numbered(rows: Callable[[], Iterator[Row]]) -> Iterator[tuple[tuple[int, int], Row]]:
    return (((0, number), row) for number, row in enumerate(rows()))


def load_dataset(
    source: str | Path | Sequence[str] | Dataset | IterableDataset,
    *,
    image_folders: str | Sequence[str] | None = None,
    reward_method: str | Sequence[str] | None = None,
    task: str = "default",
    format_prompt: str | Path | None = None,
    prompt_key: str | None = None,
    answer_key: str | None = None,
    image_key: str | None = None,
    video_key: str | None = None,
    allow_outside: bool = False,
    ignore_columns: Sequence[str] = (),
    allow_private_urls: bool = False,
    check: bool = True,
    mixture: str | Sequence[str | float] | None = None,
    mixture_seed: int = 0,
    streaming: bool = False,
    think_tags: bool = True,
    markup: Sequence[str] | None = None,
) -> Dataset | IterableDataset:
    """Load data as a data set whose rows are built on access.

    A row has `prompt` (chat messages with empty image blocks), `images` (undecoded `ImageRef`s in the order of the
    blocks), `record`, `id`, `answer`, `task`, `where` (`file:line`) and all other columns of the source.

    Args:
        source: jsonl, json or csv files (`a.jsonl:b.jsonl` or a list), or Hugging Face data (`open_sources`).
        image_folders: an image folder for each file, or one for all; "" means absolute paths.
        reward_method: an accuracy method for each file, or one for all; overridden by a record's `accu_reward_method`.
        task, format_prompt: the task of records without one, and a jinja file that replaces its prompt.
        prompt_key, answer_key: columns of question and answer; default: QUESTION_KEYS and ANSWER_KEYS of parsing.py.
        image_key, video_key: columns of images and of videos (paths, lists of frames); default: the usual names.
        allow_outside, allow_private_urls: allow image paths that leave their folder, and URLs of private networks.
        ignore_columns: columns that are not read.
        check: validate all rows and image files first.
        mixture, mixture_seed: a fraction for each file (`0.7:0.3` or a list), and what selects rows; none is repeated.
        streaming: return an `IterableDataset` that caches nothing; rows but the first are checked when they are read.
        think_tags: the task's prompt asks for <think> tags; False for models whose chat template writes them.
        markup: special tokens of the model, which no text may contain; None means those of all known models.

    Raises:
        DataError: the data have problems; the message is a table of all of them.
        KeyError, ValueError: the task is unknown; the prompt file is missing or wrong.
    """
    options: dict[str, Any] = {"prompt_key": prompt_key, "answer_key": answer_key, "image_key": image_key}
    options |= {"video_key": video_key, "allow_outside": allow_outside, "allow_private_urls": allow_private_urls}
    marks = None if markup is None else tuple(markup)
    config = ReaderConfig(task=task, ignored=tuple(ignore_columns), markup=marks, **options)
    prompt = None if format_prompt is None else load_prompt(format_prompt)
    files = {"image_folders": image_folders, "reward_method": reward_method}
    result = open_sources(source, config=config, opener=open_stream if streaming else None, **files)
    if streaming:
        return _stream(result, prompt, check, mixture, think_tags)
    numbers = _row_numbers(source, result, check, mixture, mixture_seed)
    return row_dataset(RowTransform(result.sources, prompt, think_tags=think_tags), numbers)


def _row_numbers(
    source: object, result: OpenResult, check: bool, mixture: str | Sequence[str | float] | None, seed: int
) -> np.ndarray | None:
    """Return the rows of a mixture as (source, number); None for all rows. Problems of the data are raised."""
    shares, problems = file_shares(mixture, source, result)
    _raise_or_warn([*problems, *result.problems], result.sources if check else [])
    return mixture_numbers(list(map(len, result.sources)), shares, seed) if shares else None


def _raise_or_warn(problems: list[Problem], sources: Sequence[Source]) -> None:
    """Raise a DataError for errors in `problems` or in the rows of `sources`; log warnings."""
    problems += [problem for part in sources for problem in check_rows(part)]
    if any(not problem.is_warning for problem in problems):
        raise DataError(problems)
    _warn(problems)


def _stream(
    result: OpenResult, prompt: PromptTemplate | None, check: bool, mixture: object, think_tags: bool
) -> IterableDataset:
    """Return the data set of streams; raise a DataError for problems of a file or its first row."""
    problems = list(result.problems)
    if mixture is not None:
        expected = "no mixture with streaming, where the number of rows is unknown; mix the rows in one file"
        problems.append(Problem("--mixture", "shares", str(mixture), expected))
    rows = StreamedRows(result.sources, prompt, check=check, think_tags=think_tags)
    problems += rows.first_problems()
    if any(not problem.is_warning for problem in problems):
        raise DataError(problems)
    return iterable_dataset(rows)


def _warn(problems: list[Problem]) -> None:
    """Log one warning per kind of problem, however many rows have it."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.expected, []).append(problem)
    for expected, same_kind in kinds.items():
        first = same_kind[0]
        logger.warning("%d rows, first %s: %s: expected %s", len(same_kind), first.where, first.found, expected)
