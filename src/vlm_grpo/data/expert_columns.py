"""Expert answers under another name: a column of the rows, or a thought and an answer that become one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.experts import COLUMN
from vlm_grpo.data.problems import DataError, Problem
from vlm_grpo.tasks import ANSWER_TEXTS, gold_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

LOOKED_AT = 1000  # rows in which the columns are looked for


def with_expert_key(dataset: Dataset | IterableDataset, key: str) -> Dataset | IterableDataset:
    """Return the rows with their expert's answers in the column `expert`.

    Args:
        dataset: of `load_dataset`.
        key: the column with whole answers, or `thinking+solution`: the column with the reasoning and that with the
            answer, which are put into the form of the row's task. Rows where one is missing have no answer.

    Raises:
        DataError: the first rows have no such columns.
        ValueError: more than two columns.
    """
    from datasets import IterableDataset

    names = tuple(key.split("+"))
    if len(names) > 2 or not all(names):
        raise ValueError(f"--expert_key {key}: must be a column, or two, thinking+solution")
    first = list(islice(iter(dataset), LOOKED_AT))
    missing = [name for name in names if not any(row.get(name) for row in first)]
    if missing:
        have = ", ".join(dict.fromkeys(name for row in first for name in row))
        found = f"{missing[0]!r}; the rows have {have}"
        raise DataError([Problem("--expert_key", "column", found, "a column of the data")])
    change = partial(_named, names)
    if isinstance(dataset, IterableDataset):
        from vlm_grpo.data.stream import iterable_dataset

        return iterable_dataset(lambda: map(change, dataset))
    return dataset.with_transform(ChangedRows(dataset.format["format_kwargs"]["transform"], change))


class ChangedRows:
    """The transform of a data set whose rows are changed one by one; can be pickled for loader processes."""

    def __init__(self, make: Callable[[Any], dict[str, list[Any]]], change: Callable[[dict[str, Any]], dict[str, Any]]):
        self.make = make
        self.change = change

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """Return the columns of the changed rows."""
        columns = self.make(batch)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [self.change(row) for row in rows]
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _named(names: tuple[str, ...], row: Mapping[str, Any]) -> dict[str, Any]:
    values = [row.get(name) for name in names]
    answer = values[0] if len(values) == 1 else None if None in values else joined(*values, task=str(row.get("task")))
    return {**row, COLUMN: answer}


def joined(thinking: Any, solution: Any, *, task: str) -> str:
    """Return a thought and an answer as the completion that a task asks for; tags that are there already stay."""
    thought, answer = gold_text(thinking).strip(), gold_text(solution).strip()
    if task == "vqa":
        return json.dumps({"reasoning_steps": thought.splitlines(), "answer": answer}, ensure_ascii=False)
    if "<answer>" not in answer:
        answer = f"<answer>{ANSWER_TEXTS.get(task, gold_text)(answer)}</answer>"
    if task == "grounding":
        return answer
    return f"{thought if '<think>' in thought else f'<think>{thought}</think>'}\n{answer}"
