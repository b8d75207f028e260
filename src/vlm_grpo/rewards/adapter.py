"""From a reward of one completion to the callable that TRL wants, and from a name on a command line to that."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_grpo.records import Record
from vlm_grpo.text import completion_text
from vlm_grpo.userfile import load_from_file

Reward = Callable[..., "float | None"]
FIELDS = {
    "answer": ("answer", "solution"),
    "method": ("accu_reward_method", "method"),
    "options": ("options", "choices"),
}
# What is known of a row only with its model: (width, height) of each image, original and as the model sees it, the
# coordinate space in which the model answers, and what the prompt has written of the assistant's turn.
FACTS = ("image_sizes", "processed_sizes", "answer_space", "turn_opening")
# Of each completion the turn that it is part of: text or messages with the prompt's opening, and the model's markers.
WHOLE_TURNS = "whole_turns"
BATCH_PARAMETERS = ("prompts", "completions")
ANSWER_PARAMETERS = ("ground_truth", "answer", "solution")


def record_of(columns: Mapping[str, Sequence[Any]], row: int) -> Record:
    """The record of one row: the `record` column, or one made of the columns that TRL passes."""
    if "record" in columns and isinstance(columns["record"][row], Record):
        return with_facts(columns["record"][row], {name: columns[name][row] for name in FACTS if name in columns})
    return record_from({name: column[row] for name, column in columns.items() if _is_column(column, row)})


def with_facts(record: Record, facts: Mapping[str, Any]) -> Record:
    """The record with more columns in `extra`, such as FACTS."""
    return replace(record, extra={**record.extra, **facts}) if facts else record


def record_of_row(row: Mapping[str, Any]) -> Record:
    """The record of a data row: its `record`, or one made of its columns."""
    given = row.get("record")
    return given if isinstance(given, Record) else record_from(row)


def _is_column(column: Any, row: int) -> bool:
    return isinstance(column, list | tuple) and len(column) > row


def record_from(values: Mapping[str, Any]) -> Record:
    """A record from named values; what is no field of a record goes to `extra`."""
    taken = {
        name: next((values[key] for key in keys if values.get(key) is not None), None) for name, keys in FIELDS.items()
    }
    return Record(
        id=values.get("id", ""),
        question=str(values.get("question", "")),
        answer=taken["answer"],
        task=values.get("task") or "default",
        method=taken["method"],
        options=tuple(taken["options"] or ()),
        reference_steps=tuple(values.get("reference_steps") or ()),
        where=str(values.get("where", "")),
        extra=dict(values),
    )


def batch_reward(
    name: str, reward: Reward, *, prepare: Callable[..., None] | None = None, **options: Any
) -> Callable[..., list[float | None]]:
    """`reward(prompts, completions, **columns)` for any TRL trainer, from a reward of one completion.

    The reward is given the assistant's whole turn where the trainer knows it (`whole_turns`), else the completion.
    `prepare` sees the whole batch first; `options` are the reward's keyword arguments. The callable's `asynchronous` is
    the same as a coroutine function: TRL awaits all of those together, so that slow rewards do not wait for each other.
    """
    wanted = inspect.signature(reward).parameters
    preparing = set(inspect.signature(prepare).parameters) if prepare else set()

    def score_batch(completions: Sequence[Any], prompts: Any = None, **columns: Any) -> list[float | None]:
        tokens = columns.pop("completion_ids", None)
        turns = columns.pop(WHOLE_TURNS, completions)
        texts = [completion_text(turn) for turn in turns]
        records = [record_of(columns, row) for row in range(len(texts))]
        if prepare:
            given = {**options, "log_metric": columns.get("log_metric")}
            prepare(texts, records, **{key: value for key, value in given.items() if key in preparing})
        lengths = [len(ids) for ids in tokens] if tokens else [None] * len(texts)
        known = {"num_tokens": lengths, "messages": turns}
        own = [key for key in known if key in wanted]
        return [
            checked(name, reward, text, records[row], **options, **{key: known[key][row] for key in own})
            for row, text in enumerate(texts)
        ]

    async def asynchronous(completions: Sequence[Any], prompts: Any = None, **columns: Any) -> list[float | None]:
        return await asyncio.to_thread(score_batch, completions, prompts, **columns)

    score_batch.__name__ = asynchronous.__name__ = name
    score_batch.asynchronous = asynchronous
    return score_batch


def checked(name: str, reward: Reward, completion: str, record: Record, **options: Any) -> float | None:
    """The reward's value; an exception or a value that is no number stops the run and says for which record.

    Raises:
        RuntimeError: the reward raised.
        TypeError: it returned something else than a number or None.
    """
    try:
        value = reward(completion, record, **options)
    except ImportError:
        raise  # says what to install; no record is to blame
    except Exception as error:
        where = _blame(name, record)
        raise RuntimeError(f"{where}: {type(error).__name__}: {error}\ncompletion: {completion!r:.2000}") from error
    if value is None or type(value) is float:
        return value
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(value.item())  # a number of numpy or torch
    except (AttributeError, ValueError, RuntimeError):
        raise TypeError(f"{_blame(name, record)}: must return a number or None, got {value!r:.200}") from None


def _blame(name: str, record: Record) -> str:
    return f"reward {name!r} on record {record.id!r} {record.where}".rstrip()


def split_spec(spec: str) -> tuple[str, float]:
    """`NAME:WEIGHT` or `file.py:function:WEIGHT` as name and weight (1.0 without one).

    Raises:
        ValueError: what stands for the weight is not a number.
    """
    head, colon, tail = spec.rpartition(":")
    if not colon or head.endswith(".py") or (len(head) == 1 and head.isalpha()):
        return spec, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise ValueError(f"reward {spec!r}: the weight after ':' must be a number, got {tail!r}") from None


def load_user_reward(name: str) -> Callable[..., list[float | None]]:
    """The function that `path/to/file.py:function` names, as a batch reward.

    Raises:
        ValueError: no such file or function.
    """
    function = load_from_file("reward", name)
    if not callable(function):
        raise ValueError(f"reward {name!r}: must be a function, got {type(function).__name__}")
    return lift(name.rpartition(":")[2], function)


def lift(name: str, function: Callable[..., Any]) -> Callable[..., list[float | None]]:
    """A batch reward from a user's function: `(completions, ...)`, `(completion, record)` or `(text, ground_truth)`."""
    parameters = list(inspect.signature(function).parameters)
    if any(parameter in BATCH_PARAMETERS for parameter in parameters):
        return function
    if len(parameters) >= 2 and parameters[1] in ANSWER_PARAMETERS:
        return batch_reward(name, lambda completion, record: function(completion, record.answer))
    return batch_reward(name, function)
