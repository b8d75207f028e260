"""Reading data: source files to records, records to lazily made rows that hold paths or undecoded bytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.data.check import check_rows, check_source
from vlm_grpo.data.forms import Form
from vlm_grpo.data.mixture import file_shares, mixture_numbers
from vlm_grpo.data.problems import DataError, Problem, problem_table
from vlm_grpo.data.rows import RowMaker, row_dataset, val_split
from vlm_grpo.data.sources import open_sources
from vlm_grpo.data.stream import StreamedRows, iterable_dataset, open_stream
from vlm_grpo.prompts import load_prompt

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from vlm_grpo.data.sources import Opened, Source
    from vlm_grpo.prompts import PromptTemplate

__all__ = ["DataError", "Form", "Problem", "check_source", "load_dataset", "problem_table", "val_split"]

logger = logging.getLogger(__name__)


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
    """A data set whose rows are made when they are asked for.

    A row holds `prompt` (chat messages with empty image blocks), `images` (undecoded `ImageRef`s in the order of the
    blocks), `record`, `id`, `answer`, `task`, `where` (`file:line`) and every further column of the source.

    Args:
        source: jsonl, json or csv files (`a.jsonl:b.jsonl` or a list), or Hugging Face data (`open_sources`).
        image_folders: an image folder for each file, or one for all; an empty one means absolute paths.
        reward_method: an accuracy method for each file, or one for all; a record's own `accu_reward_method` wins.
        task, format_prompt: the task of records that name none, and a jinja file that replaces its prompt.
        prompt_key, answer_key: columns of question and answer; without them QUESTION_KEYS and ANSWER_KEYS of forms.py.
        image_key, video_key: columns of images and of videos (paths, lists of frames); without them the usual names.
        allow_outside, allow_private_urls: allow image paths that leave their folder, and URLs of private networks.
        ignore_columns: columns that are not read.
        check: read all rows and look at every image file first.
        mixture: a share for each file, `0.7:0.3` or a list; no row comes twice, and the file that would run out first
            sets the length. `mixture_seed` chooses rows of the others.
        streaming: an `IterableDataset` that keeps nothing: one file after the other is read as rows are asked for. The
            first row of each is looked at before, a later one (with `check` its images too) when it is reached.
        think_tags: the task's prompt asks for <think> tags; False for models whose chat template writes them.
        markup: special tokens of the model, which no text may hold; None is those that are known of any model.

    Raises:
        DataError: something is wrong with the data; the message is a table of all problems.
        KeyError, ValueError: the task is unknown; the prompt file is missing or wrong.
    """
    keys = {"prompt_key": prompt_key, "answer_key": answer_key, "image_key": image_key, "video_key": video_key}
    keys |= {"allow_outside": allow_outside, "allow_private_urls": allow_private_urls}
    form = Form(task=task, ignored=tuple(ignore_columns), markup=None if markup is None else tuple(markup), **keys)
    prompt = None if format_prompt is None else load_prompt(format_prompt)
    pairs = {"image_folders": image_folders, "reward_method": reward_method}
    if streaming:
        return _stream(open_sources(source, **pairs, form=form, opener=open_stream), prompt, check, mixture, think_tags)
    opened = open_sources(source, **pairs, form=form)
    shares, problems = file_shares(mixture, source, opened)
    _refuse([*problems, *opened.problems], opened.sources if check else [])
    numbers = mixture_numbers(list(map(len, opened.sources)), shares, mixture_seed) if shares else None
    return row_dataset(RowMaker(opened.sources, prompt, think_tags=think_tags), numbers)


def _refuse(problems: list[Problem], sources: Sequence[Source]) -> None:
    """Raise a DataError if anything is wrong, also with a row of these sources; warnings are logged."""
    problems += [problem for part in sources for problem in check_rows(part)]
    if any(not problem.is_warning for problem in problems):
        raise DataError(problems)
    _warn(problems)


def _stream(
    opened: Opened, prompt: PromptTemplate | None, check: bool, mixture: object, think_tags: bool
) -> IterableDataset:
    """The rows of streams, unless something is wrong with a file or its first row."""
    problems = list(opened.problems)
    if mixture is not None:
        expected = "nothing with streaming, which does not know how many rows a file has; mix the rows in one file"
        problems.append(Problem("--mixture", "shares", str(mixture), expected))
    rows = StreamedRows(opened.sources, prompt, check=check, think_tags=think_tags)
    problems += rows.first_problems()
    if any(not problem.is_warning for problem in problems):
        raise DataError(problems)
    return iterable_dataset(rows)


def _warn(problems: list[Problem]) -> None:
    """One warning for each kind, however many rows it concerns."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.expected, []).append(problem)
    for expected, found in kinds.items():
        first = found[0]
        logger.warning("%d rows, first %s: %s: expected %s", len(found), first.where, first.found, expected)
