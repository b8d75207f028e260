"""The environments of a command line: `--environment`, its options, and the flags of single ones. No torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vlm_grpo.cli.parsing import UsageError
from vlm_grpo.table import unknown_name

OWN_FLAGS = ("data_root", "candidates_per_episode", "fixed_correct_index")  # options with a flag of their own


def environment_factory(flags: Any) -> Any:
    """What `--environment` and the flags beside it name; None without it.

    Raises:
        KeyError: an unknown name.
        ValueError: options that it does not have or refuses.
    """
    own = {name: getattr(flags, name) for name in OWN_FLAGS}
    return environments(flags.environment, flags.environment_options, own) if flags.environment else None


def check_environments(flags: Any, has_data: bool) -> None:
    """Make every environment once, before data and model are read.

    Raises:
        UsageError: an unknown one, wrong options, or one that needs data.
    """
    if not flags.environment:
        return
    try:
        environment_factory(flags)
    except (KeyError, ValueError, ImportError) as error:
        raise UsageError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    names = " ".join(flags.environment)
    if not has_data and not makes_episodes(flags.environment):
        raise UsageError(f"--environment {names} plays rows: give --data_file_paths file.jsonl")
    if has_data and makes_episodes(flags.environment):
        raise UsageError(f"--environment {names} makes its episodes itself: leave the data out")


def opened(flags: Any, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row as its environment begins it; without one as it is."""
    if not flags.environment:
        return row
    from vlm_grpo.rollouts.env_pool import EnvPool
    from vlm_grpo.rollouts.messages import read_prompt

    stage = EnvPool([], environment_factory(flags))
    stage.choose_protocols("hermes", None)
    row = stage.begin([row])[1][0]
    return {**row, "images": read_prompt(row).images}


def environments(names: Sequence[str], given: str | Mapping[str, Any] | None, own: Mapping[str, Any]) -> Any:
    """What the trainers take as `environment_factory`: one environment, or of several a mapping for the rows to choose.

    Args:
        names: of ENVIRONMENTS, or `file.py:Class`.
        given: `--environment_options`, JSON; of several environments an object for each name.
        own: what the flags of OWN_FLAGS say; None is not given.

    Raises:
        KeyError: an unknown name.
        ValueError: options that are no JSON object, or that an environment does not have or refuses.
    """
    options = _object(given)
    set_by_flags = {name: value for name, value in own.items() if value is not None}
    if len(names) == 1:
        return _factory(names[0], {**options, **set_by_flags})
    for name in options:
        if name not in names:
            raise ValueError(f"--environment_options: {unknown_name('environment', name, list(names))}")
    takers = [name for name in names if set(set_by_flags) <= set(_parameters(name))]
    if set_by_flags and not takers:
        raise ValueError(f"--{next(iter(set_by_flags))} has no effect: no --environment here has such an option")
    return {
        name: _factory(name, {**_object(options.get(name)), **(set_by_flags if name in takers else {})})
        for name in names
    }


def makes_episodes(names: Sequence[str]) -> bool:
    """Whether an environment needs no data: it makes each episode of its number."""
    return len(names) == 1 and bool(getattr(_kind(names[0]), "MAKES_EPISODES", False))


def _factory(name: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    """Calling it makes an environment; one is made now, so that wrong options show before a model is loaded."""
    known = _parameters(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"--environment {name} has no option {option!r}; it has {', '.join(known) or 'none'} "
                "(--environment_options '{...}')"
            )
    make = partial(_kind(name), **options)
    make()
    return make


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(_kind(name)).parameters)


def _kind(name: str) -> Callable[..., Any]:
    from vlm_grpo.envs import find_environment

    return find_environment(name)


def _object(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        value = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError:
        value = None
    if not isinstance(value, Mapping):
        raise ValueError(f"--environment_options must be a JSON object, got {given!r}")
    return dict(value)
