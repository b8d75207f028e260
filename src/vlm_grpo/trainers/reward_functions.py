"""From names of rewards to the callables and weights that TRL takes, and from places of arguments to their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch.nn import Module

from vlm_grpo.algorithms import configured_algorithm
from vlm_grpo.rewards import is_reward_model, make_concurrent, resolve_rewards
from vlm_grpo.rewards.adapter import BatchReward, checked_batch_reward, split_spec
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, with_time_limit

RewardFunction = BatchReward | str  # as TRL takes them: a name is of a reward model that it loads


def named_rewards(
    reward_funcs: Any, args: Any, environment_rewards: Sequence[Any] = ()
) -> tuple[Any, list[float] | None]:
    """Return callables for the names of REWARDS, and the weights that were given with the names (None if all are 1).

    A reward model's folder or name on the Hub stays text: TRL loads it. The rewards of the algorithm are appended,
    where they are not listed already, then `environment_rewards`.

    Raises:
        KeyError: an unknown name.
        ValueError: weights are given twice.
    """
    if reward_funcs is None and not environment_rewards:
        return None, None
    specs = [] if reward_funcs is None else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    options = args.reward_options() if hasattr(args, "reward_options") else {}
    functions: list[RewardFunction] = []
    weights: list[float] = []
    for item in specs:
        function: RewardFunction
        if isinstance(item, str) and is_reward_model(item):
            function, weight = split_spec(item)
        elif isinstance(item, str):
            (function,), (weight,) = resolve_rewards([item], **options)
        else:
            function, weight = _checked(item, options.get("time_limit", DEFAULT_TIME_LIMIT)), 1.0
        functions.append(function)
        weights.append(weight)
    if getattr(args, "reward_weights", None) is None:
        combined_weights = None if all(weight == 1.0 for weight in weights) else weights
    elif any(weight != 1.0 for weight in weights):
        raise ValueError("--reward_weights and NAME:WEIGHT in --reward_funcs both set weights; use one of them")
    else:
        combined_weights = list(args.reward_weights)
    all_functions, combined_weights = _with_those_of_algorithm(
        make_concurrent(functions), combined_weights, args, options
    )
    return [*all_functions, *environment_rewards], combined_weights and combined_weights + [1.0] * len(
        environment_rewards
    )


def _checked(function: Any, seconds: float) -> Any:
    """Return a user's function with checked return values; models and functions that are checked already are unchanged.

    Raises:
        ValueError: a class.
    """
    if inspect.isclass(function) and not issubclass(function, Module):
        raise ValueError(
            f"reward {function.__name__!r}: must be a function, or an object that can be called, got the class itself; "
            f"give {function.__name__}()"
        )
    if isinstance(function, Module) or not callable(function) or hasattr(function, "asynchronous"):
        return function
    return with_time_limit(
        checked_batch_reward(getattr(function, "__name__", type(function).__name__), function), seconds
    )


def _with_those_of_algorithm(
    functions: Sequence[RewardFunction], weights: list[float] | None, args: Any, options: dict[str, Any]
) -> tuple[Sequence[RewardFunction], list[float] | None]:
    known = {getattr(function, "__name__", "") for function in functions}
    missing = {key: w for key, w in configured_algorithm(args)[1].rewards.items() if key not in known}
    if not missing:
        return functions, weights
    added, _ = resolve_rewards(list(missing), **options)
    return [*functions, *added], (weights or [1.0] * len(functions)) + list(missing.values())


def by_name(init: Callable[..., None], arguments: Sequence[Any]) -> dict[str, Any]:
    """Return what was given by place to the bound `__init__` of a TRL trainer after `args`, by name."""
    names = list(inspect.signature(init).parameters)[3:]
    return dict(zip(names, arguments, strict=False))
