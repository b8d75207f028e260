"""Expert demonstrations: answers to training rows, or rows with their own questions.

An answer to a training row is in its column `expert`, in other columns (`with_expert_key`), or in jsonl files that are
matched by `id` (`with_experts`). It is the complete text of a completion, with the reasoning and the tags
that the task requires, without the tokens that start and end a turn. A row has none, one, or a list of them.

Rows with their own questions (`demonstrations`) are imitated in addition to the training rows. They are conversations,
chat messages, or a question and an answer. The last assistant turn, or the answer, is the expert's completion; no task
prompt is added.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlm_grpo.data.dataset import RowTransform, row_dataset
from vlm_grpo.data.errors import DataError, Problem, show_value
from vlm_grpo.data.parsing import ANSWER_KEYS, QUESTION_KEYS, ReaderConfig
from vlm_grpo.data.readers import split_entries
from vlm_grpo.data.readers.text_files import JsonlSource, RawRow, content_lines, parse_line
from vlm_grpo.data.validation import check_rows
from vlm_grpo.prompts import PromptTemplate
from vlm_grpo.records import NewRow, Row
from vlm_grpo.tasks import ANSWER_TEXTS, gold_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.getLogger(__name__)

COLUMN, PLACES = "expert", "expert_where"  # the answers of a row, and their locations
EXPECTED = "text that is not empty, or a list of such texts"


class ExpertAnswer(NamedTuple):
    """A text and the `file:line` that it comes from."""

    text: str
    where: str


def expert_answers(row: Row) -> list[ExpertAnswer]:
    """Return the expert's answers to a row.

    Raises:
        ValueError: the column has values other than text.
    """
    value = row.get(COLUMN)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{type(value).__name__} {show_value(value)}")
    places = row.get(PLACES) or [str(row.get("where") or "")] * len(texts)
    return [ExpertAnswer(text, where) for text, where in zip(texts, places, strict=True)]


def read_experts(paths: str | Sequence[str | Path]) -> dict[str, list[ExpertAnswer]]:
    """Return the answers in jsonl files (`a.jsonl:b.jsonl` or a list) by the id of their row.

    Several lines with one id are several answers.

    Raises:
        DataError: a file or a line cannot be read; the message is a table of all problems.
    """
    answers: dict[str, list[ExpertAnswer]] = {}
    problems: list[Problem] = []
    for path in split_entries(paths) if isinstance(paths, str) else paths:
        try:
            for where, row in _lines(Path(path)):
                _read_line(row, where, answers, problems)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return answers


def _lines(path: Path) -> Iterator[tuple[str, RawRow]]:
    for number, _, line in content_lines(path):
        where = f"{path}:{number}"
        yield where, parse_line(line, where)


def _read_line(row: RawRow, where: str, experts: dict[str, list[ExpertAnswer]], problems: list[Problem]) -> None:
    if isinstance(row, Problem):
        problems.append(row)
        return
    name = row.get("id")
    if type(name) not in (str, int):
        problems.append(Problem(where, "id", f"{type(name).__name__} {show_value(name)}", "the id of a training row"))
        return
    try:
        answers = expert_answers({COLUMN: row.get(COLUMN), "where": where})
    except ValueError as error:
        problems.append(Problem(where, COLUMN, str(error), EXPECTED))
        return
    if not answers:
        problems.append(Problem(where, COLUMN, "missing, null or an empty list", EXPECTED))
    experts.setdefault(str(name), []).extend(answers)


def with_experts(dataset: Dataset | IterableDataset, paths: str | Sequence[str | Path]) -> Dataset | IterableDataset:
    """Return the training rows with the answers of these files added, matched by `id`.

    The number of rows with an answer and the unmatched ids are logged (not for a stream).

    Raises:
        DataError: as for `read_experts`; no id matches a training row, or one id matches several.
    """
    from datasets import IterableDataset

    experts = read_experts(paths)
    if isinstance(dataset, IterableDataset):
        return _stream(dataset, experts)
    places = _places(dataset)
    _report(places, experts)
    if dataset.format["type"] == "custom":
        return dataset.with_transform(ExpertTransform(dataset.format["format_kwargs"]["transform"], experts))
    rows = [with_answers(row, experts) for row in dataset.select_columns(_present(dataset, "id", COLUMN, "where"))]
    columns = dataset.remove_columns(_present(dataset, COLUMN))
    return columns.add_column(COLUMN, [row[COLUMN] for row in rows]).add_column(PLACES, [row[PLACES] for row in rows])


def _present(dataset: Dataset, *names: str) -> list[str]:
    return [name for name in names if name in dataset.column_names]


def _stream(dataset: IterableDataset, experts: dict[str, list[ExpertAnswer]]) -> IterableDataset:
    from vlm_grpo.data.dataset import iterable_dataset

    return iterable_dataset(lambda: (with_answers(row, experts) for row in dataset))


def with_answers(row: Row, experts: Mapping[str, Sequence[ExpertAnswer]]) -> NewRow:
    """Return the row with the answers for its id appended; an invalid column is left unchanged."""
    try:
        answers = [*expert_answers(row), *experts.get(str(row.get("id")), ())]
    except ValueError:
        return dict(row)
    return {**row, COLUMN: [answer.text for answer in answers], PLACES: [answer.where for answer in answers]}


class ExpertTransform:
    """Transform that adds expert answers to rows; can be pickled for loader processes."""

    def __init__(
        self,
        make: Callable[[Mapping[str, Sequence[int]]], dict[str, list[object]]],
        experts: Mapping[str, Sequence[ExpertAnswer]],
    ) -> None:
        self.make = make
        self.experts = experts

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[object]]:
        columns = self.make(batch)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        made = [with_answers(row, self.experts) for row in rows]
        return {name: [row.get(name) for row in made] for name in dict.fromkeys([*columns, COLUMN, PLACES])}


def _places(dataset: Dataset) -> dict[str, list[str]]:
    """Return the locations of the training rows of each id."""
    if dataset.format["type"] != "custom" and "id" not in dataset.column_names:
        expected = "a column id to match answers by, or answers in a column expert"
        raise DataError([Problem("train_dataset", "id", "no such column", expected)])
    rows = dataset if dataset.format["type"] == "custom" else dataset.select_columns(_present(dataset, "id", "where"))
    places: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        places.setdefault(str(row["id"]), []).append(str(row.get("where") or f"row {number}"))
    return places


def _report(places: Mapping[str, Sequence[str]], experts: Mapping[str, Sequence[ExpertAnswer]]) -> None:
    """Log how many rows and ids match.

    Raises:
        DataError: no id matches, or one matches several rows.
    """
    problems = [
        Problem(
            experts[name][0].where, "id", f"{name}, of {' and '.join(found[:2])}", "the id of one training row only"
        )
        for name, found in places.items()
        if name in experts and len(found) > 1
    ]
    unmatched = [name for name in experts if name not in places]
    if len(unmatched) == len(experts):
        found = f"{unmatched[0]}, and none of {len(experts)} ids matches a training row"
        problems.append(Problem(experts[unmatched[0]][0].where, "id", found, f"ids such as {next(iter(places))}"))
    if problems:
        raise DataError(problems)
    matched, total = len(experts) - len(unmatched), len(places)
    logger.log(
        logging.WARNING if unmatched or matched < total else logging.INFO,
        "expert answers in files: %d of %d training rows have one, %d have none; %d ids match no row%s",
        matched,
        total,
        total - matched,
        len(unmatched),
        f", first {unmatched[0]} at {experts[unmatched[0]][0].where}" if unmatched else "",
    )


def check_experts(rows: Iterable[Row], encode: Callable[[str], list[int]], limit: int) -> int:
    """Validate all expert answers; return how many rows have one.

    Args:
        rows: training rows; only the expert columns, `id` and `where` are read.
        encode: returns the tokens of an answer with its end token; raises ValueError for an invalid answer.
        limit: maximum number of tokens of an answer, `--max_completion_length`.

    Raises:
        DataError: answers are invalid or too long; all of them are in one table.
    """
    problems: list[Problem] = []
    count = 0
    for number, row in enumerate(rows):
        place = str(row.get("where") or f"row {number}")
        try:
            answers = expert_answers(row)
        except ValueError as error:
            problems.append(Problem(place, COLUMN, str(error), EXPECTED))
            continue
        count += bool(answers)
        for answer in answers:
            problem = _validate_answer(answer, place, encode, limit)
            problems += [problem] if problem else []
    if problems:
        raise DataError(problems)
    return count


def _validate_answer(
    answer: ExpertAnswer, place: str, encode: Callable[[str], list[int]], limit: int
) -> Problem | None:
    where = answer.where or place
    try:
        length = len(encode(answer.text))
    except ValueError as error:
        return Problem(where, COLUMN, str(error), "plain text")
    if length > limit:
        return Problem(
            where, COLUMN, f"{length} tokens with the end of the turn", f"at most --max_completion_length {limit}"
        )
    return None


ROWS_SEARCHED = 1000  # to find the columns


def with_expert_key(dataset: Dataset | IterableDataset, key: str) -> Dataset | IterableDataset:
    """Return the rows with their expert's answers in the column `expert`.

    Args:
        dataset: a data set of `load_dataset`.
        key: the column with complete answers, or `thinking+solution`: the columns with reasoning and answer, which are
            combined in the format of the row's task. Rows that lack one of them have no answer.

    Raises:
        DataError: the first rows have no such columns.
        ValueError: there are more than two columns.
    """
    from datasets import IterableDataset

    names = tuple(key.split("+"))
    if len(names) > 2 or not all(names):
        raise ValueError(f"--expert_key {key}: must be one column, or two as in thinking+solution")
    first = list(islice(iter(dataset), ROWS_SEARCHED))
    missing = [name for name in names if not any(row.get(name) for row in first)]
    if missing:
        have = ", ".join(dict.fromkeys(name for row in first for name in row))
        found = f"{missing[0]!r}; the rows have {have}"
        raise DataError([Problem("--expert_key", "column", found, "a column of the data")])
    change = partial(_rename_columns, names)
    if isinstance(dataset, IterableDataset):
        from vlm_grpo.data.dataset import iterable_dataset

        return iterable_dataset(lambda: map(change, dataset))
    return dataset.with_transform(MappedTransform(dataset.format["format_kwargs"]["transform"], change))


class MappedTransform:
    """Transform that changes rows one by one; can be pickled for loader processes."""

    def __init__(
        self, make: Callable[[Mapping[str, Sequence[int]]], dict[str, list[object]]], change: Callable[[Row], NewRow]
    ):
        self.make = make
        self.change = change

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[object]]:
        """Return the columns of the changed rows."""
        columns = self.make(batch)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [self.change(row) for row in rows]
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _rename_columns(names: tuple[str, ...], row: Row) -> NewRow:
    values = [row.get(name) for name in names]
    answer = (
        values[0]
        if len(values) == 1
        else None
        if None in values
        else format_demonstration(*values, task=str(row.get("task")))
    )
    return {**row, COLUMN: answer}


def format_demonstration(thinking: object, solution: object, *, task: str) -> str:
    """Combine reasoning and answer into the completion format of a task; existing tags are kept."""
    thought, answer = gold_text(thinking).strip(), gold_text(solution).strip()
    if task == "vqa":
        return json.dumps({"reasoning_steps": thought.splitlines(), "answer": answer}, ensure_ascii=False)
    if "<answer>" not in answer:
        answer = f"<answer>{ANSWER_TEXTS.get(task, gold_text)(answer)}</answer>"
    if task == "grounding":
        return answer
    return f"{thought if '<think>' in thought else f'<think>{thought}</think>'}\n{answer}"


PLAIN = PromptTemplate("plain", "{{ question }}")
ASSISTANT = ("gpt", "assistant")


class ExpertFiles(NamedTuple):
    """The files of `--expert_data_file_paths`, divided into demonstrations and answers to training rows."""

    demonstrations: list[str]
    answers: list[str]


def sort_expert_files(paths: str | Sequence[str]) -> ExpertFiles:
    """Classify files by their first row: a demonstration has a question and no column `expert`.

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
        image_folder: image folder of all files.
        markup: special tokens of the model, which no text may contain.

    Raises:
        DataError: rows or images are invalid; the message is a table of all problems.
    """
    config = ReaderConfig(folder=image_folder, answer_key=COLUMN, markup=None if markup is None else tuple(markup))
    sources = [DemonstrationSource(path, config) for path in paths]
    problems = [problem for source in sources for problem in check_rows(source)]
    if any(not problem.is_warning for problem in problems):
        raise DataError(problems)
    return row_dataset(RowTransform(sources, PLAIN))


class DemonstrationSource(JsonlSource):
    """A jsonl file of demonstrations; the expert's answer of each row is in the column `expert`."""

    def raw(self, index: int) -> RawRow:
        """Return one row, or its problem."""
        return _split_answer(super().raw(index), self.where(index))

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows in order."""
        return (_split_answer(row, self.where(index)) for index, row in enumerate(super().rows()))


def _split_answer(row: RawRow, where: str) -> RawRow:
    """Return the row with the expert's answer moved from the conversation or its column to `expert`."""
    if isinstance(row, Problem):
        return row
    key = next((name for name in QUESTION_KEYS if row.get(name) is not None), None)
    turns = row.get(key) if key else None
    last = turns[-1] if isinstance(turns, list) and turns else None
    if (
        key
        and isinstance(turns, list)
        and isinstance(last, Mapping)
        and last.get("from", last.get("role")) in ASSISTANT
    ):
        content = last.get("value", last.get("content"))
        return {**_without_answers(row), key: turns[:-1], COLUMN: _text(content)}
    answer = next((row[name] for name in ANSWER_KEYS if row.get(name) is not None), None)
    if answer is None:
        return Problem(
            where, key or "question", "a question without an answer", "an assistant turn at the end, or an answer"
        )
    return {**_without_answers(row), COLUMN: _text(answer)}


def _without_answers(row: Row) -> NewRow:
    return {name: value for name, value in row.items() if name not in ANSWER_KEYS and name != "task"}


def _text(content: object) -> str:
    if isinstance(content, list) and all(isinstance(block, Mapping) and "text" in block for block in content):
        return "".join(str(block["text"]) for block in content)
    return gold_text(content)
