"""Reward functions of users, with the signatures of this package, TRL and VLM-R1, RLLaVA, or verl.

A function's signature is recognized by its parameters. SIGNATURES lists all of them; docs/rewards.md shows an example
of each. Returned values are checked in adapter.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from vlm_grpo.answer_parser import completion_text, ground_truth_text
from vlm_grpo.import_utils import load_from_file
from vlm_grpo.records import Columns, Completion, Record
from vlm_grpo.rewards.adapter import BATCH_PARAMETERS, BatchReward, batch_reward, checked_batch_reward, record_at
from vlm_grpo.time_limits import is_coroutine_function

RECORD_NAMES = ("record", "row", "")  # names of the second parameter, without underscores
TRUTH_NAMES = ("ground_truth", "gt", "answer", "solution", "truth", "target", "label", "reference", "gold", "expected")
RESPONSE_NAMES = ("response", "predict", "predict_str", "prediction", "pred")  # then the second may have any name
VERL_NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")
TOTAL_KEYS = ("overall", "score")  # key of the reward in a returned dict: RLLaVA's, verl's


UserReward = Callable[..., object]  # has one of SIGNATURES; its return value is checked


class RewardSignature(NamedTuple):
    """A signature of reward functions.

    Attributes:
        shape: its parameters, as shown in messages.
        source: the system that it comes from.
        adapt: converts a function's name and the function to a batch reward.
    """

    shape: str
    source: str
    adapt: Callable[[str, UserReward], BatchReward]


def find_signature(function: UserReward) -> str | None:
    """Return the name in SIGNATURES that matches a function's parameters; None if there is none."""
    signature = inspect.signature(function)
    parameters = signature.parameters
    if any(name in BATCH_PARAMETERS for name in parameters):
        return "columns"
    if "solution_str" in parameters:
        return "verl" if _binds(signature, (), VERL_NAMES) else None
    needed = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) == 1:
        return _signature_of_one(needed[0]) if _binds(signature, (None,), ()) else None
    keywords = [name for name in ("num_tokens", "messages") if name in parameters]
    if not _binds(signature, ("", None), keywords):
        return None
    return _signature_of_two(*list(parameters.values())[:2])


def _binds(signature: inspect.Signature, values: Sequence[object], names: Sequence[str]) -> bool:
    try:
        signature.bind(*values, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _signature_of_one(parameter: inspect.Parameter) -> str | None:
    """Return which of RLLaVA's signatures a single parameter means: one dict, or a list of all dicts."""
    annotation = str(getattr(parameter.annotation, "__name__", parameter.annotation)).strip("'\"").lower()
    if parameter.name == "reward_inputs" or annotation.startswith(("list", "sequence")):
        return "reward_inputs"
    is_one = parameter.name == "reward_input" or annotation.startswith(("dict", "mapping", "rewardinput"))
    return "reward_input" if is_one else None


def _signature_of_two(first: inspect.Parameter, second: inspect.Parameter) -> str | None:
    name = second.name.strip("_")
    if name in RECORD_NAMES or "Record" in str(second.annotation):
        return "record"
    return "text" if name in TRUTH_NAMES or first.name in RESPONSE_NAMES else None


def to_batch_reward(name: str, function: UserReward) -> BatchReward:
    """Convert a user's function with any of SIGNATURES to a batch reward.

    Raises:
        TypeError: the function has another signature.
    """
    signature = inspect.signature(function)
    form = find_signature(function)
    if form is None:
        raise TypeError(f"must take {accepted_signatures()}; got {name}{signature}")
    if form == "columns":
        if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
            raise TypeError(f"must end with **columns to accept all columns of the data, got {name}{signature}")
    elif inspect.iscoroutinefunction(function):
        raise TypeError(f"a coroutine function must take whole batches (completions, **columns), got {name}{signature}")
    return SIGNATURES[form].adapt(name, function)


def accepted_signatures() -> str:
    """Return the accepted signatures in one line, for messages."""
    return ", ".join(f"{form.shape} as in {form.source}" for form in SIGNATURES.values())


def load_user_reward(name: str) -> BatchReward:
    """Load the function `path/to/file.py:function` as a batch reward.

    Raises:
        ValueError: the file or function does not exist, or it does not have the signature of a reward.
    """
    function = load_from_file("reward", name)
    if not callable(function) or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else type(function).__name__
        raise ValueError(f"reward {name!r}: must be a function, got {kind}")
    try:
        return to_batch_reward(name.rpartition(":")[2], function)
    except TypeError as error:
        raise ValueError(f"reward {name!r}: {error}") from None


class _RewardComponents:
    """Collects the additional entries of the dicts that a reward returns; their means become metrics."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, list[float]] = {}

    def total(self, value: object) -> object:
        """Return the reward in a function's return value, a number or a dict; collect the other numbers of a dict.

        Raises:
            TypeError: the dict contains no reward.
        """
        if not isinstance(value, Mapping):
            return value
        key = next((key for key in TOTAL_KEYS if key in value), None)
        if key is None:
            raise TypeError(
                f"a dict must have the reward as {' or '.join(map(repr, TOTAL_KEYS))}, got {dict(value)!r:.200}"
            )
        for part, number in value.items():
            if part != key and isinstance(number, int | float):
                self.values.setdefault(str(part), []).append(float(number))
        return value[key]

    def log(self, log_metric: Callable[[str, float], None] | None) -> None:
        """Log the means as `NAME/PART` and clear the values."""
        values, self.values = self.values, {}
        if log_metric is None:
            return
        for part, numbers in values.items():
            log_metric(f"{self.name}/{part}", sum(numbers) / len(numbers))


def _per_completion(name: str, call: Callable[[str, Record, int], object]) -> BatchReward:
    """Convert a function of text, record and number of tokens that returns a number or a dict to a batch reward."""
    parts = _RewardComponents(name)

    def reward(completion: str, record: Record, *, num_tokens: int | None = None) -> Any:
        return parts.total(call(completion, record, num_tokens or len(completion.split())))

    score = batch_reward(name, reward)

    def score_batch(completions: Sequence[Completion], prompts: object = None, **columns: Any) -> list[float | None]:
        values = score(completions, prompts, **columns)
        parts.log(columns.get("log_metric"))
        return values

    score_batch.__name__ = name
    vars(score_batch).update(vars(score))
    return score_batch


def _adapt_record(name: str, function: Callable[..., Any]) -> BatchReward:
    return batch_reward(name, function)


def _adapt_text(name: str, function: UserReward) -> BatchReward:
    return _per_completion(name, lambda text, record, tokens: function(text, ground_truth_text(record.answer)))


def _adapt_reward_input(name: str, function: UserReward) -> BatchReward:
    return _per_completion(name, lambda text, record, tokens: function(_reward_input(text, record, tokens)))


def _adapt_reward_inputs(name: str, function: UserReward) -> BatchReward:
    parts = _RewardComponents(name)

    def score_all(completions: Sequence[Completion], prompts: object = None, **columns: Any) -> object:
        turns, ids = columns.get("whole_turns", completions), columns.get("completion_ids")
        texts = [completion_text(turn) for turn in turns]
        record_columns = {
            key: column for key, column in columns.items() if key not in ("whole_turns", "completion_ids")
        }
        lengths = [len(text.split()) for text in texts] if ids is None else [len(tokens) for tokens in ids]
        inputs = [_reward_input(text, record_at(record_columns, row), lengths[row]) for row, text in enumerate(texts)]
        values = function(inputs)
        values = [parts.total(value) for value in values] if isinstance(values, list | tuple) else values
        parts.log(columns.get("log_metric"))
        return values

    return checked_batch_reward(name, score_all)


def _reward_input(text: str, record: Record, tokens: int) -> dict[str, object]:
    """Return the argument of RLLaVA's rewards, which includes the row's other columns."""
    return {
        **record.extra,
        "response": text,
        "response_length": tokens,
        "ground_truth": ground_truth_text(record.answer),
    }


def _adapt_verl(name: str, function: UserReward) -> BatchReward:
    def call(text: str, record: Record, tokens: int) -> object:
        extra = record.extra.get("extra_info")
        return function(
            data_source=record.extra.get("data_source") or record.task,
            solution_str=text,
            ground_truth=ground_truth_text(record.answer),
            extra_info=extra if isinstance(extra, Mapping) else dict(record.extra),
        )

    return _per_completion(name, call)


def _adapt_columns(name: str, function: UserReward) -> BatchReward:
    """Convert a reward with TRL's signature; VLM-R1's columns are added to those of the data."""
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]

    def complete(completions: Sequence[Completion], prompts: object, columns: Columns) -> dict[str, object]:
        available = {
            **_vlm_r1_columns(columns, len(completions)),
            **columns,
            "completions": completions,
            "prompts": prompts,
        }
        if missing := [key for key in needed if key not in available]:
            have = ", ".join(key for key in available if key not in BATCH_PARAMETERS)
            raise TypeError(f"requires {', '.join(missing)}, which is not in the data; available columns: {have}")
        return available

    async def await_all(completions: Sequence[Completion], prompts: object = None, **columns: Any) -> object:
        return await cast("Awaitable[object]", function(**complete(completions, prompts, columns)))

    def score_all(completions: Sequence[Completion], prompts: object = None, **columns: Any) -> object:
        return function(**complete(completions, prompts, columns))

    return checked_batch_reward(name, await_all if is_coroutine_function(function) else score_all)


def _vlm_r1_columns(columns: Columns, rows: int) -> dict[str, list[object]]:
    """Return the columns that VLM-R1 passes to rewards; `ground_truth` is the answer as text."""
    records = columns.get("record") or []
    if len(records) != rows or not all(isinstance(record, Record) for record in records):
        return {}
    truths = [ground_truth_text(record.answer) for record in records]
    return {
        "problem": [record.question.replace("<image>", "") for record in records],
        "solution": [f"<answer> {truth} </answer>" for truth in truths],
        "ground_truth": truths,
        "image_path": [[ref.source for ref in record.images if isinstance(ref.source, str)] for record in records],
        "accu_reward_method": [record.method or "default" for record in records],
    }


SIGNATURES: Mapping[str, RewardSignature] = {
    "record": RewardSignature("(completion, record)", "this package", _adapt_record),
    "text": RewardSignature("(response, ground_truth)", "RLLaVA's guide", _adapt_text),
    "columns": RewardSignature("(completions, **columns)", "TRL and VLM-R1", _adapt_columns),
    "reward_input": RewardSignature("(reward_input: dict)", "RLLaVA", _adapt_reward_input),
    "reward_inputs": RewardSignature("(reward_inputs: list)", "RLLaVA", _adapt_reward_inputs),
    "verl": RewardSignature("(data_source, solution_str, ground_truth, extra_info)", "verl", _adapt_verl),
}
