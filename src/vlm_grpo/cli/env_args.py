"""Environments of a command line: `--environment`, its options and flags. Imports no torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import Row
from vlm_grpo.registry import unknown_name

if TYPE_CHECKING:
    import argparse

    from vlm_grpo.cli.args import ScriptArguments


EnvironmentFlags: TypeAlias = "argparse.Namespace | ScriptArguments"
EnvironmentMaker = Callable[[], object]
# Type accepted by the trainer: one environment, or a mapping from which the column `environment` of a row selects.
EnvironmentFactory = EnvironmentMaker | dict[str, EnvironmentMaker]

OWN_FLAGS = ("data_root", "candidates_per_episode", "fixed_correct_index")  # options with their own flag


def environment_factory(flags: EnvironmentFlags) -> EnvironmentFactory | None:
    """Return the environment factory of `--environment` and its options; None without the flag.

    Raises:
        KeyError: an unknown name.
        ValueError: unknown or invalid options.
    """
    flag_values = {name: getattr(flags, name) for name in OWN_FLAGS}
    return build_environments(flags.environment, flags.environment_options, flag_values) if flags.environment else None


def check_environments(flags: EnvironmentFlags, has_data: bool) -> None:
    """Create every environment once, before data and model are loaded.

    Raises:
        UsageError: an unknown environment, invalid options, or missing or superfluous data.
    """
    if not flags.environment:
        return
    try:
        environment_factory(flags)
    except (KeyError, ValueError, ImportError) as error:
        raise UsageError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    names = " ".join(flags.environment)
    if not has_data and not makes_episodes(flags.environment):
        raise UsageError(f"--environment {names} needs data: set --data_file_paths file.jsonl")
    if has_data and makes_episodes(flags.environment):
        raise UsageError(f"--environment {names} generates its episodes itself: remove the data")


def opening_row(flags: EnvironmentFlags, row: Row) -> Row:
    """Return a row with the first observation of its environment; unchanged without one."""
    if not flags.environment:
        return row
    from vlm_grpo.rollouts.env_pool import EnvPool
    from vlm_grpo.rollouts.messages import read_prompt

    env_pool = EnvPool([], environment_factory(flags))
    env_pool.choose_tool_parsers("hermes", None)
    row = env_pool.start([row])[1][0]
    return {**row, "images": read_prompt(row).images}


def build_environments(
    names: Sequence[str], options_text: str | Mapping[str, object] | None, flag_values: Mapping[str, object]
) -> EnvironmentFactory:
    """Return the trainer's `environment_factory`: one environment, or a mapping from which each row selects.

    Args:
        names: names in ENVIRONMENTS, or `file.py:Class`.
        options_text: `--environment_options`, JSON; with several environments, one object per name.
        flag_values: values of the flags OWN_FLAGS; None if not set.

    Raises:
        KeyError: an unknown name.
        ValueError: options that are not a JSON object, or unknown or invalid for an environment.
    """
    options = _json_object(options_text)
    set_by_flags = {name: value for name, value in flag_values.items() if value is not None}
    if len(names) == 1:
        return _factory(names[0], {**options, **set_by_flags})
    for name in options:
        if name not in names:
            raise ValueError(f"--environment_options: {unknown_name('environment', name, list(names))}")
    takers = [name for name in names if set(set_by_flags) <= set(_parameters(name))]
    if set_by_flags and not takers:
        raise ValueError(f"--{next(iter(set_by_flags))} has no effect: no --environment of this run has this option")
    return {
        name: _factory(name, {**_json_object(options.get(name)), **(set_by_flags if name in takers else {})})
        for name in names
    }


def makes_episodes(names: Sequence[str]) -> bool:
    """Return whether an environment needs no data because it generates its episodes."""
    return len(names) == 1 and bool(getattr(_environment_class(names[0]), "MAKES_EPISODES", False))


def _factory(name: str, options: Mapping[str, object]) -> EnvironmentMaker:
    """Return a factory of environments after creating one, so that invalid options fail before a model is loaded."""
    parameters = _parameters(name)
    for option in options:
        if option not in parameters:
            raise ValueError(
                f"--environment {name} has no option {option!r}; it has {', '.join(parameters) or 'none'} "
                "(--environment_options '{...}')"
            )
    make = partial(_environment_class(name), **options)
    make()
    return make


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(_environment_class(name)).parameters)


def _environment_class(name: str) -> Callable[..., object]:
    from vlm_grpo.envs import find_environment

    return find_environment(name)


def _json_object(options_text: object) -> dict[str, object]:
    try:
        value = json.loads(options_text) if isinstance(options_text, str) else options_text or {}
    except ValueError:
        value = None
    if not isinstance(value, Mapping):
        raise ValueError(f"--environment_options must be a JSON object, got {options_text!r}")
    return dict(value)
