"""Runs what models call: the episodes side by side, each call with a time limit, every error an observation."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from vlm_grpo.envs.environment import ToolError
from vlm_grpo.envs.tool_parser import Result
from vlm_grpo.tool_call_formats import Call

logger = logging.getLogger(__name__)

Tools = Mapping[str, Callable[..., Any]]
AT_ONCE = 64  # episodes whose calls run side by side


class Job(NamedTuple):
    """The calls of one turn, which run one after the other: they may change the same environment.

    `example` is how a call is written, for the answer to one that cannot be read.
    """

    tools: Tools
    calls: Sequence[Call]
    example: str


class Done(NamedTuple):
    """Results of a job in the order of its calls; `is_hanging` where one did not end in time and still runs."""

    results: list[Result]
    is_hanging: bool = False


def run(jobs: Sequence[Job], seconds: float) -> list[Done]:
    """What came of each job; no call takes longer than `seconds`, and none raises."""
    if not jobs:
        return []
    with ThreadPoolExecutor(max_workers=min(len(jobs), AT_ONCE)) as pool:
        return list(pool.map(lambda job: _run_one(job, seconds), jobs))


def _run_one(job: Job, seconds: float) -> Done:
    results: list[Result] = []
    for call in job.calls:
        result = _in_time(job, call, seconds)
        if result is None:
            late = Result(call.name or "", f"Error: {call.name} did not end within {seconds:g} s", is_failure=True)
            return Done([*results, late], is_hanging=True)
        results.append(result)
    return Done(results)


def _in_time(job: Job, call: Call, seconds: float) -> Result | None:
    """The call's result; None if it takes too long. Its thread cannot be ended; it is left behind."""
    done: list[Result] = []
    thread = threading.Thread(target=lambda: done.append(_call(job, call)), daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else None


def _call(job: Job, call: Call) -> Result:
    try:
        return Result(call.name or "", _content(_checked(job, call)(**call.arguments)))
    except ToolError as error:
        return Result(call.name or "", f"Error: {error}", is_failure=True)
    except Exception as error:  # whatever a tool raises, the episode goes on
        logger.warning("tool %r raised %s: %s", call.name, type(error).__name__, error, exc_info=True)
        return Result(call.name or "", f"Error: {type(error).__name__}: {error}", is_failure=True)


def _checked(job: Job, call: Call) -> Callable[..., Any]:
    """The tool, if there is one of that name and it takes these arguments.

    Raises:
        ToolError: otherwise.
    """
    if call.name is None or not isinstance(call.arguments, Mapping):
        raise ToolError(f"the call cannot be read; expected {job.example}")
    tools = job.tools
    if call.name not in tools:
        raise ToolError(f"there is no tool {call.name!r}; the tools are {', '.join(tools)}")
    try:
        inspect.signature(tools[call.name]).bind(**call.arguments)
    except TypeError as error:
        raise ToolError(f"{call.name}: {error}") from error
    return tools[call.name]


def _content(value: Any) -> Any:
    """What a tool returned as content: blocks stay, anything else becomes text."""
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    is_blocks = (
        isinstance(value, list) and value and all(isinstance(block, dict) and "type" in block for block in value)
    )
    return value if is_blocks else str(value)
