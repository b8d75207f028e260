"""The environments and tools of a run: which one each row uses; they are reused from rollout to rollout."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from vlm_grpo.envs import find_environment
from vlm_grpo.envs.environment import append_observation, tool_schema, tools_of, validate_environment
from vlm_grpo.envs.tool_parser import ToolParser, find_tool_parser
from vlm_grpo.records import Columns, JsonSchema, NewRow, Row
from vlm_grpo.rewards.adapter import BatchReward, record_of_row, to_reward_value
from vlm_grpo.rollouts.encoder import TOOLS_COLUMN
from vlm_grpo.rollouts.messages import MEDIA_COLUMNS, fill_media, read_prompt
from vlm_grpo.rollouts.trajectory import Trajectory
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, await_method, call_method, describe_row

if TYPE_CHECKING:
    from trl import GRPOConfig, RLOOConfig


COLUMN = "environment"


EnvironmentFactory = str | Callable[..., object]
EnvironmentFactories = EnvironmentFactory | Mapping[str, EnvironmentFactory] | None


class NoEnvironment:
    """The environment of a run that has tools alone."""

    def reset(self, **row: Any) -> None:
        """Observe nothing."""


def empty_prompts(args: GRPOConfig | RLOOConfig, factory: EnvironmentFactories) -> Dataset:
    """Return a data set of one rollout of empty prompts, for a run whose environment provides the prompts.

    Raises:
        ValueError: `max_steps` is not set, or rows would have to choose among several environments.
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
    return Dataset.from_list([{"prompt": []}] * ((args.generation_batch_size or 1) // (args.num_generations or 1)))


def pop_env_pool(options: dict[str, Any], args: GRPOConfig | RLOOConfig) -> EnvPool | None:
    """Remove tools and environments from a trainer's options; a run without data gets rows for its environment.

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
    """Creates, lends and takes back the environments that rows run in.

    Args:
        tools: functions that every row may call.
        factory: what makes an environment: a class or function, or the name of one of ENVIRONMENTS; or a mapping of
            names to those, from which each row's column `environment` chooses.
        method_time_limit: seconds that a call of an environment's own methods may take; 0 is no limit.

    Raises:
        KeyError: an unknown name of an environment.
        ValueError: an environment without `reset`, or a tool without type hints or docstring.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., object]],
        factory: EnvironmentFactories,
        method_time_limit: float = DEFAULT_TIME_LIMIT,
    ) -> None:
        self.method_time_limit = method_time_limit
        self.rows_choose = isinstance(factory, Mapping)
        named: Mapping[str | None, EnvironmentFactory] = (
            dict(factory.items())
            if isinstance(factory, Mapping)
            else {None: NoEnvironment if factory is None else factory}
        )
        self.factories = {name: find_environment(value) for name, value in named.items()}
        self.tools = {tool.__name__: tool for tool in tools}
        self.idle: dict[str | None, list[object]] = {name: [make()] for name, make in self.factories.items()}
        self.tool_parsers: dict[str | None, ToolParser] = {}
        self._schemas: dict[str | None, list[JsonSchema]] = {}
        for name, (instance,) in self.idle.items():
            validate_environment(name or type(instance).__name__, instance)
            self._schemas[name] = [tool_schema(*item) for item in {**self.tools, **tools_of(instance)}.items()]

    def choose_tool_parsers(self, tool_format: str, template: str | None) -> None:
        """Decide how prompts describe tools and how calls are parsed; called once, before the first rollout.

        Args:
            tool_format: one of TOOL_FORMATS.
            template: the model's chat template.

        Raises:
            ValueError: the template or the tools do not fit the format.
        """
        for name, (instance,) in self.idle.items():
            tools = {**self.tools, **tools_of(instance)}
            self.tool_parsers[name] = find_tool_parser(tool_format, template, tools, getattr(instance, "TAGS", None))

    def rewards(self) -> list[BatchReward]:
        """Return the reward function of every environment class that has one."""
        kinds = dict.fromkeys(type(idle[0]) for idle in self.idle.values())
        return [environment_reward(kind, self.method_time_limit) for kind in kinds if hasattr(kind, "get_reward")]

    def start(self, rows: Sequence[Row]) -> tuple[list[Trajectory], list[NewRow]]:
        """Return a trajectory for each row, and the rows with the first observations of their environments.

        Raises:
            ValueError: a row names no environment, or none of this run.
        """
        trajectories = [self._new_trajectory(self._environment_name(row)) for row in rows]
        return trajectories, [self._reset(*pair) for pair in zip(trajectories, rows, strict=True)]

    def release(self, trajectories: Sequence[Trajectory]) -> None:
        """Take back the environments for the next rollout, except those in which a call still runs."""
        for trajectory in trajectories:
            if not trajectory.is_hanging:
                self.idle[trajectory.environment_name].append(trajectory.environment)

    def _environment_name(self, row: Row) -> str | None:
        if not self.rows_choose:
            return None
        name = row.get(COLUMN) or record_of_row(row).extra.get(COLUMN)
        if name not in self.factories:
            known = ", ".join(map(str, self.factories))
            raise ValueError(f"{row.get('where') or 'a row'}: {COLUMN!r} must be one of {known}, got {name!r}")
        return name

    def _new_trajectory(self, name: str | None) -> Trajectory:
        idle = self.idle[name]
        instance = idle.pop() if idle else self.factories[name]()
        return Trajectory(
            environment_name=name,
            environment=instance,
            tools={**self.tools, **tools_of(instance)},
            tool_parser=self.tool_parsers[name],
            schemas=self._schemas[name],
            method_time_limit=self.method_time_limit,
        )

    def _reset(self, trajectory: Trajectory, row: Row) -> NewRow:
        """Reset the environment, and return the row with its observation and the description of its tools."""
        prompt = read_prompt({"prompt": [], **row})
        if isinstance(prompt.messages, str) or isinstance(prompt.raw_prompt, str):
            raise ValueError(f"{describe_row(row) or 'a row'}: an environment needs a prompt of messages, got text")
        messages = prompt.raw_prompt or fill_media(prompt.messages, prompt.images, prompt.videos)
        trajectory.location = describe_row(row)
        messages = append_observation(messages, trajectory.call_environment("reset", **row))
        rest = {name: value for name, value in row.items() if name not in MEDIA_COLUMNS}
        schemas, parser = trajectory.schemas, trajectory.tool_parser
        if schemas:
            messages = parser.prompt(messages, schemas)
        return {**rest, "prompt": messages, TOOLS_COLUMN: schemas if parser.is_native and schemas else None}


def environment_reward(kind: type[Any], method_time_limit: float) -> BatchReward:
    """Return the reward function of an environment class; None for rows that run in another environment.

    Where `get_reward` is a coroutine function, so is the reward function: all calls of a rollout run concurrently.
    """
    name = kind.__name__

    def location(row: int, columns: Columns) -> str:
        known = {key: columns[key] for key in ("where", "id") if isinstance(columns.get(key), list | tuple)}
        return describe_row({key: column[row] for key, column in known.items()})

    def as_reward(value: object, row: str) -> float | None:
        return to_reward_value(value, lambda: f"environment {name!r}, get_reward() on row {row}")

    def one_by_one(environments: Sequence[object], **columns: Any) -> list[float | None]:
        values: list[float | None] = []
        for number, each in enumerate(environments):
            row = location(number, columns)
            is_ours = type(each) is kind
            values.append(as_reward(call_method(each, "get_reward", row, method_time_limit), row) if is_ours else None)
        return values

    async def concurrently(environments: Sequence[object], **columns: Any) -> list[float | None]:
        async def score(number: int, each: object) -> float | None:
            if type(each) is not kind:
                return None
            row = location(number, columns)
            return as_reward(await await_method(each, "get_reward", row, method_time_limit), row)

        return await asyncio.gather(*(score(number, each) for number, each in enumerate(environments)))

    function: BatchReward = concurrently if inspect.iscoroutinefunction(kind.get_reward) else one_by_one
    function.__name__ = name
    return function
