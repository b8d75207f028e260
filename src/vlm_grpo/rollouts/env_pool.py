"""The environments and tools of a run: which one a row is played in, kept and used again from rollout to rollout."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from vlm_grpo.envs import find_environment
from vlm_grpo.envs.environment import append_observation, tool_schema, tools_of, validate_environment
from vlm_grpo.envs.tool_parser import find_tool_parser
from vlm_grpo.rewards.adapter import record_of_row, to_reward_value
from vlm_grpo.rollouts.encoder import TOOLS_COLUMN
from vlm_grpo.rollouts.messages import MEDIA_COLUMNS, fill, read_prompt
from vlm_grpo.rollouts.trajectory import Trajectory
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, await_method, call_method, describe_row

COLUMN = "environment"


class NoEnvironment:
    """The environment of a run that has tools alone."""

    def reset(self, **row: Any) -> None:
        """Nothing to say."""


def empty_prompts(args: Any, factory: Any) -> Dataset:
    """Return a data set for a run without one, whose environment gives the prompts: one rollout of empty prompts.

    Raises:
        ValueError: the length of the run is not given, or rows would have to choose among several environments.
    """
    if isinstance(factory, Mapping):
        raise ValueError(
            "several environments and no train_dataset: give one whose column 'environment' chooses for each row, or a "
            "single environment"
        )
    if args.max_steps <= 0:
        raise ValueError(
            "no train_dataset: the environment gives the prompts, and max_steps must say how long to train"
        )
    return Dataset.from_list([{"prompt": []}] * (args.generation_batch_size // args.num_generations))


def pop_env_pool(options: dict[str, Any], args: Any) -> EnvPool | None:
    """Take tools and environments out of a trainer's options; a run without data is given rows for its environment.

    Raises:
        ValueError: as `EnvPool` and `empty_prompts`.
    """
    tools, factory = options.pop("tools", None) or [], options.pop("environment_factory", None)
    if not tools and factory is None:
        return None
    if options.get("train_dataset") is None and factory is not None:
        options["train_dataset"] = empty_prompts(args, factory)
    return EnvPool(tools, factory, getattr(args, "reward_time_limit", DEFAULT_TIME_LIMIT))


class EnvPool:
    """What rows are played in.

    Args:
        tools: functions that every row may call.
        factory: what makes an environment: a class or function, or the name of one of ENVIRONMENTS; or a mapping of
            names to those, among which each row's column `environment` chooses.
        seconds: that a call of an environment's own methods may take; 0 is no limit.

    Raises:
        KeyError: an unknown name of an environment.
        ValueError: an environment without `reset`, or a tool without hints or docstring.
    """

    def __init__(self, tools: Sequence[Callable[..., Any]], factory: Any, seconds: float = DEFAULT_TIME_LIMIT) -> None:
        self.seconds = seconds
        self.is_chosen_by_rows = isinstance(factory, Mapping)
        named = factory if self.is_chosen_by_rows else {None: NoEnvironment if factory is None else factory}
        self.factories = {name: find_environment(made) for name, made in named.items()}
        self.tools = {tool.__name__: tool for tool in tools}
        self._idle: dict[Any, list[Any]] = {name: [make()] for name, make in self.factories.items()}
        self._protocols, self._schemas = {}, {}
        for name, (instance,) in self._idle.items():
            validate_environment(name or type(instance).__name__, instance)
            self._schemas[name] = [tool_schema(*item) for item in {**self.tools, **tools_of(instance)}.items()]

    def choose_protocols(self, protocol: str, template: str | None) -> None:
        """Decide how the model is told of its tools; called once, before the first rollout.

        Args:
            protocol: one of TOOL_FORMATS.
            template: the model's chat template.

        Raises:
            ValueError: the template or the tools do not fit the protocol.
        """
        for name, (instance,) in self._idle.items():
            tools = {**self.tools, **tools_of(instance)}
            self._protocols[name] = find_tool_parser(protocol, template, tools, getattr(instance, "TAGS", None))

    def rewards(self) -> list[Callable[..., Any]]:
        """The reward of every class of environment that has one."""
        kinds = dict.fromkeys(type(idle[0]) for idle in self._idle.values())
        return [environment_reward(kind, self.seconds) for kind in kinds if hasattr(kind, "get_reward")]

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Trajectory], list[dict[str, Any]]]:
        """An episode for each row, and the rows with what their environments say at the beginning.

        Raises:
            ValueError: a row names no environment, or none of this run.
        """
        episodes = [self._episode(self._name_of(row)) for row in rows]
        return episodes, [self._opened(episode, row) for episode, row in zip(episodes, rows, strict=True)]

    def end(self, episodes: Sequence[Trajectory]) -> None:
        """Keep the environments for the next rollout, but those in which a call still runs."""
        for episode in episodes:
            if not episode.is_hanging:
                self._idle[episode.name].append(episode.environment)

    def _name_of(self, row: Mapping[str, Any]) -> str | None:
        if not self.is_chosen_by_rows:
            return None
        name = row.get(COLUMN) or record_of_row(row).extra.get(COLUMN)
        if name not in self.factories:
            known = ", ".join(self.factories)
            raise ValueError(f"{row.get('where') or 'a row'}: {COLUMN!r} must be one of {known}, got {name!r}")
        return name

    def _episode(self, name: str | None) -> Trajectory:
        idle = self._idle[name]
        instance = idle.pop() if idle else self.factories[name]()
        tools = {**self.tools, **tools_of(instance)}
        own = {"schemas": self._schemas[name], "method_seconds": self.seconds}
        return Trajectory(name, instance, tools, self._protocols[name], **own)

    def _opened(self, episode: Trajectory, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its images in their places, what the environment adds, and what the model must know of tools."""
        prompt = read_prompt({"prompt": [], **row})
        asked = prompt.given or fill(prompt.messages, prompt.images, prompt.videos)
        episode.row = describe_row(row)
        messages = append_observation(asked, episode.ask("reset", **row))
        rest = {name: value for name, value in row.items() if name not in MEDIA_COLUMNS}
        schemas = episode.schemas
        if schemas:
            messages = episode.protocol.prompt(messages, schemas)
        return {**rest, "prompt": messages, TOOLS_COLUMN: schemas if episode.protocol.is_native and schemas else None}


def environment_reward(kind: type, seconds: float) -> Callable[..., Any]:
    """The reward of a class of environments, of their episodes; None for rows that are played in another.

    A class whose `get_reward` is a coroutine function has a coroutine function: all of a rollout are awaited together.
    """
    name = kind.__name__

    def blame(row: int, columns: Mapping[str, Any]) -> str:
        known = {key: columns[key] for key in ("where", "id") if isinstance(columns.get(key), list | tuple)}
        return describe_row({key: column[row] for key, column in known.items()})

    def as_reward(value: Any, row: str) -> float | None:
        return to_reward_value(value, lambda: f"environment {name!r}, get_reward() on row {row}")

    def one_by_one(environments: Sequence[Any], **columns: Any) -> list[float | None]:
        values: list[float | None] = []
        for number, each in enumerate(environments):
            row = blame(number, columns)
            is_ours = type(each) is kind
            values.append(as_reward(call_method(each, "get_reward", row, seconds), row) if is_ours else None)
        return values

    async def together(environments: Sequence[Any], **columns: Any) -> list[float | None]:
        async def ask(number: int, each: Any) -> float | None:
            if type(each) is not kind:
                return None
            row = blame(number, columns)
            return as_reward(await await_method(each, "get_reward", row, seconds), row)

        return await asyncio.gather(*(ask(number, each) for number, each in enumerate(environments)))

    function = together if inspect.iscoroutinefunction(kind.get_reward) else one_by_one
    function.__name__ = name
    return function
