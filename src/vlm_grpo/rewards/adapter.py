"""Adapt a reward of one completion to TRL's batch interface; check its values and name the record in errors."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

from vlm_grpo.answer_parser import completion_text
from vlm_grpo.records import Columns, Completion, Record, Row
from vlm_grpo.time_limits import is_coroutine_function, restart_deadline

RewardValues = list["float | None"]
# As TRL calls a reward: (completions, prompts=..., **columns); a coroutine function is awaited.
BatchReward = Callable[..., "RewardValues | Awaitable[RewardValues]"]


class RewardFn(Protocol):
    """A reward of one completion, `(completion, record) -> float | None`; None if it does not apply to the record.

    Further parameters are keyword-only options. `num_tokens` (length of the completion) and `messages` (the whole turn)
    are passed to functions that have these parameters.
    """

    def __call__(self, completion: str, record: Record, /, *args: Any, **options: Any) -> float | None: ...


FIELD_ALIASES = {
    "answer": ("answer", "solution"),
    "method": ("accu_reward_method", "method"),
    "options": ("options", "choices"),
}
# Columns that depend on the model: (width, height) of each image, original and as processed, the coordinate space of
# the model's answers, and the part of the assistant's turn that the prompt already contains.
FACTS = ("image_sizes", "processed_sizes", "answer_space", "turn_opening")
# Column with the assistant's whole turn: text or messages, including the opening in the prompt and special tokens.
WHOLE_TURNS = "whole_turns"
BATCH_PARAMETERS = ("prompts", "completions")
FLOAT32_MAX = 3.4028234663852886e38
INAPPLICABLE_ROLLOUTS = 10  # consecutive rollouts in which a reward applies to no row, before a warning

logger = logging.getLogger(__name__)


def record_at(columns: Columns, row: int) -> Record:
    """Return the record of one row: the `record` column, or one built from the columns that TRL passes."""
    if "record" in columns and isinstance(columns["record"][row], Record):
        return with_facts(columns["record"][row], {name: columns[name][row] for name in FACTS if name in columns})
    return record_from({name: column[row] for name, column in columns.items() if _is_column(column, row)})


def with_facts(record: Record, facts: Mapping[str, object]) -> Record:
    """Return the record with additional columns in `extra`, such as FACTS."""
    return replace(record, extra={**record.extra, **facts}) if facts else record


def record_of_row(row: Row) -> Record:
    """Return the record of a data row: its `record`, or one built from its columns."""
    record = row.get("record")
    return record if isinstance(record, Record) else record_from(row)


def _is_column(column: object, row: int) -> bool:
    return isinstance(column, list | tuple) and len(column) > row


def record_from(values: Row) -> Record:
    """Return a record built from named values; values that are not fields of a record go to `extra`."""
    aliased = {
        name: next((values[key] for key in keys if values.get(key) is not None), None)
        for name, keys in FIELD_ALIASES.items()
    }
    return Record(
        id=values.get("id", ""),
        question=str(values.get("question", "")),
        answer=aliased["answer"],
        task=values.get("task") or "default",
        method=aliased["method"],
        options=tuple(aliased["options"] or ()),
        reference_steps=tuple(values.get("reference_steps") or ()),
        where=str(values.get("where", "")),
        extra=dict(values),
    )


def batch_reward(
    name: str, reward: RewardFn, *, prepare: Callable[..., None] | None = None, **options: object
) -> Callable[..., list[float | None]]:
    """Return a reward of one completion as `reward(prompts, completions, **columns)` for any TRL trainer.

    The reward is called with the assistant's whole turn if the trainer provides it (`whole_turns`), else with the
    completion. `prepare` is called first with the whole batch; `options` are keyword arguments of the reward. The
    attribute `asynchronous` is an equivalent coroutine function: TRL awaits those concurrently, so that slow rewards do
    not wait for each other.
    """
    parameters = inspect.signature(reward).parameters
    preparing = set(inspect.signature(prepare).parameters) if prepare else set()
    watch = InapplicableRewardWarning(name)

    def score_batch(completions: Sequence[Completion], prompts: object = None, **columns: Any) -> list[float | None]:
        tokens = columns.pop("completion_ids", None)
        turns = columns.pop(WHOLE_TURNS, completions)
        texts = [completion_text(turn) for turn in turns]
        records = [record_at(columns, row) for row in range(len(texts))]
        if prepare:
            available = {**options, "log_metric": columns.get("log_metric")}
            prepare(texts, records, **{key: value for key, value in available.items() if key in preparing})
        lengths = [len(ids) for ids in tokens] if tokens else [None] * len(texts)
        per_row = {"num_tokens": lengths, "messages": turns}
        passed = [key for key in per_row if key in parameters]
        values = [
            call_reward(name, reward, text, records[row], **options, **{key: per_row[key][row] for key in passed})
            for row, text in enumerate(texts)
        ]
        watch.note(values)
        return values

    async def asynchronous(
        completions: Sequence[Completion], prompts: object = None, **columns: Any
    ) -> list[float | None]:
        return await asyncio.to_thread(score_batch, completions, prompts, **columns)

    score_batch.__name__ = asynchronous.__name__ = name
    vars(score_batch)["asynchronous"] = asynchronous
    return score_batch


def call_batch_reward(reward: BatchReward, **columns: Any) -> RewardValues:
    """Call a batch reward and return its values; the coroutine of an async reward is run to completion."""
    values = reward(**columns)
    return values if isinstance(values, list | tuple) else asyncio.run(_awaited(values))


async def _awaited(values: Awaitable[RewardValues]) -> RewardValues:
    return await values


def call_reward(name: str, reward: RewardFn, completion: str, record: Record, **options: object) -> float | None:
    """Call a reward and return its value; errors name the reward and the record.

    Raises:
        RuntimeError: the reward raised an exception or called `sys.exit`.
        TypeError: it returned neither a number nor None.
        ValueError: it returned NaN, infinity or a number outside float32.
    """
    restart_deadline(lambda: _location(name, record))
    try:
        value = reward(completion, record, **options)
    except ImportError:
        raise  # its message names the package to install; the record is not the cause
    except (Exception, SystemExit) as error:
        where = _location(name, record)
        raise RuntimeError(f"{where}: {type(error).__name__}: {error}\ncompletion: {completion!r:.2000}") from error
    return to_reward_value(value, lambda: _location(name, record))


def to_reward_value(value: object, blame: Callable[[], str]) -> float | None:
    """Convert a reward's return value to a float; None (not applicable) stays None. `blame` names reward and record.

    Raises:
        TypeError: the value is neither a number nor None.
        ValueError: it is NaN, infinite or too large for float32, the type in which TRL stores rewards.
    """
    if value is None:
        return None
    try:
        item = value if isinstance(value, int | float) else getattr(value, "item")()  # noqa: B009 - of numpy or torch
        number = float(item)
    except (AttributeError, ValueError, RuntimeError, TypeError):
        raise TypeError(f"{blame()}: must return a number or None, got {value!r:.200}") from None
    except OverflowError:
        number = math.inf
    if not abs(number) <= FLOAT32_MAX:
        raise ValueError(
            f"{blame()}: must return a finite number within float32 (at most {FLOAT32_MAX:.4g}), got "
            f"{value!r:.200}; return None if the reward does not apply"
        )
    return number


class InapplicableRewardWarning:
    """Counts consecutive rollouts in which a reward applied to no row, and warns once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.empty = 0
        self.has_warned = False

    def note(self, values: Sequence[float | None]) -> None:
        """Record the values of one rollout."""
        self.empty = self.empty + 1 if values and all(value is None for value in values) else 0
        if self.empty == INAPPLICABLE_ROLLOUTS and not self.has_warned:
            logger.warning(
                "reward %r applied to no row in %d consecutive rollouts (it always returned None) and had no effect; "
                "check that the data have the columns it needs, or remove it",
                self.name,
                self.empty,
            )
            self.has_warned = True


def checked_batch_reward(name: str, function: Callable[..., object]) -> BatchReward:
    """Wrap a user's `function(prompts, completions, **columns)` to check values and errors as in `call_reward`.

    The wrapper of a coroutine function is a coroutine function.
    """
    watch = InapplicableRewardWarning(name)

    def check(values: object, arguments: tuple[object, ...], columns: Columns) -> list[float | None]:
        numbers = _batch_values(name, values, arguments, columns)
        watch.note(numbers)
        return numbers

    async def await_batch(*arguments: object, **columns: object) -> list[float | None]:
        try:
            values = await cast("Awaitable[object]", function(*arguments, **columns))
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"reward {name!r}: {type(error).__name__}: {error}") from error
        return check(values, arguments, columns)

    def score_batch(*arguments: object, **columns: object) -> list[float | None]:
        try:
            values = function(*arguments, **columns)
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"reward {name!r}: {type(error).__name__}: {error}") from error
        return check(values, arguments, columns)

    checked: BatchReward = await_batch if is_coroutine_function(function) else score_batch
    vars(checked).update(__wrapped__=function)
    checked.__name__ = name
    return checked


def _batch_values(name: str, values: object, arguments: tuple[object, ...], columns: Columns) -> list[float | None]:
    completions = columns.get("completions", arguments[-1] if arguments else ())
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or len(values) != len(completions):
        got = f"{len(values)} values" if isinstance(values, list | tuple) else f"{values!r:.200}"
        raise TypeError(f"reward {name!r}: must return a list of {len(completions)} numbers or None, got {got}")
    record_columns = {key: column for key, column in columns.items() if key not in BATCH_PARAMETERS}
    return [
        to_reward_value(value, partial(_row_location, name, record_columns, row)) for row, value in enumerate(values)
    ]


def _location(name: str, record: Record) -> str:
    return f"reward {name!r} on record {record.id!r} {record.where}".rstrip()


def _row_location(name: str, columns: Columns, row: int) -> str:
    return _location(name, record_at(columns, row))


def split_spec(spec: str) -> tuple[str, float]:
    """Split `NAME:WEIGHT` or `file.py:function:WEIGHT` into name and weight (default 1.0).

    Raises:
        ValueError: the weight is not a finite number.
    """
    head, colon, tail = spec.rpartition(":")
    if not colon or head.endswith(".py") or (len(head) == 1 and head.isalpha()):
        return spec, 1.0
    try:
        weight = float(tail)
    except ValueError:
        raise ValueError(f"reward {spec!r}: the weight after ':' must be a number, got {tail!r}") from None
    if not abs(weight) <= FLOAT32_MAX:
        raise ValueError(f"reward {spec!r}: the weight after ':' must be a finite number, got {tail!r}")
    return head, weight
