"""Demonstrations: rows with questions of their own, answered by an expert, which are imitated beside the training rows.

A jsonl file of conversations, of chat messages, or of a question and an answer. The last turn of the assistant, or the
answer, is the expert's whole completion; the question is asked as it stands, without a task's prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm_grpo.data.check import check_rows
from vlm_grpo.data.experts import COLUMN
from vlm_grpo.data.forms import ANSWER_KEYS, QUESTION_KEYS, Form
from vlm_grpo.data.jsonl import JsonlSource, RawRow, content_lines, parse_line
from vlm_grpo.data.problems import DataError, Problem
from vlm_grpo.data.rows import RowMaker, row_dataset
from vlm_grpo.data.sources import split_entries
from vlm_grpo.prompts import PromptTemplate
from vlm_grpo.tasks import gold_text

if TYPE_CHECKING:
    from datasets import Dataset

PLAIN = PromptTemplate("plain", "{{ question }}")
ASSISTANT = ("gpt", "assistant")


class ExpertFiles(NamedTuple):
    """The files of `--expert_data_file_paths`: those of demonstrations, and those of answers to training rows."""

    demonstrations: list[str]
    answers: list[str]


def sort_expert_files(paths: str | Sequence[str]) -> ExpertFiles:
    """Tell the files apart by their first row: one of demonstrations has a question and no column `expert`.

    Raises:
        DataError: a file is missing or has no rows.
    """
    files = ExpertFiles([], [])
    for path in map(str, split_entries(paths)):
        number, _, line = next(content_lines(Path(path)))
        row = parse_line(line, f"{path}:{number}")
        is_asked = isinstance(row, Mapping) and COLUMN not in row and any(name in row for name in QUESTION_KEYS)
        (files.demonstrations if is_asked else files.answers).append(path)
    return files


def demonstrations(paths: Sequence[str], image_folder: str = "", *, markup: Sequence[str] | None = None) -> Dataset:
    """Return the rows of files of demonstrations, with the answers in the column `expert`.

    Args:
        paths: jsonl files.
        image_folder: of all of them.
        markup: special tokens of the model, which no text may hold.

    Raises:
        DataError: rows or images are wrong; the message is a table of all problems.
    """
    form = Form(folder=image_folder, answer_key=COLUMN, markup=None if markup is None else tuple(markup))
    sources = [DemonstrationSource(path, form) for path in paths]
    problems = [problem for source in sources for problem in check_rows(source)]
    if any(not problem.is_warning for problem in problems):
        raise DataError(problems)
    return row_dataset(RowMaker(sources, PLAIN))


class DemonstrationSource(JsonlSource):
    """A jsonl file whose rows end with the question; what the expert says to it is the column `expert`."""

    def raw(self, index: int) -> RawRow:
        """One row, or what is wrong with it."""
        return _asked(super().raw(index), self.where(index))

    def rows(self) -> Iterator[RawRow]:
        """All rows in order."""
        return (_asked(row, self.where(index)) for index, row in enumerate(super().rows()))


def _asked(row: RawRow, where: str) -> RawRow:
    """The row with the expert's answer taken out of the conversation, or out of its column."""
    if isinstance(row, Problem):
        return row
    key = next((name for name in QUESTION_KEYS if row.get(name) is not None), None)
    turns = row.get(key) if key else None
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(last, Mapping) and last.get("from", last.get("role")) in ASSISTANT:
        said = last.get("value", last.get("content"))
        return {**_without_answers(row), key: turns[:-1], COLUMN: _text(said)}
    answer = next((row[name] for name in ANSWER_KEYS if row.get(name) is not None), None)
    if answer is None:
        return Problem(
            where, key or "question", "a question without an answer", "a last turn of the assistant, or an answer"
        )
    return {**_without_answers(row), COLUMN: _text(answer)}


def _without_answers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ANSWER_KEYS and name != "task"}


def _text(said: Any) -> str:
    blocks = isinstance(said, list) and all(isinstance(block, Mapping) and "text" in block for block in said)
    return "".join(str(block["text"]) for block in said) if blocks else gold_text(said)
