"""Execute tool calls: episodes in parallel, with a time limit per call; errors are returned as observations."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vlm_grpo.envs.environment import Content, Tool, ToolError
from vlm_grpo.envs.tool_parser import ToolResult
from vlm_grpo.tool_call_formats import ToolCall

logger = logging.getLogger(__name__)

ToolMap = Mapping[str, Tool]
MAX_CONCURRENT = 64  # episodes whose calls run concurrently


class ToolJob(NamedTuple):
    """The calls of one turn, run sequentially because they may change the same environment.

    `example` is a well-formed call, for the response to one that cannot be parsed.
    """

    tools: ToolMap
    calls: Sequence[ToolCall]
    example: str


class ToolOutcome(NamedTuple):
    """The results of a job in the order of its calls; `is_hanging` if one has timed out and is still running."""

    results: list[ToolResult]
    is_hanging: bool = False


def execute_tool_calls(jobs: Sequence[ToolJob], seconds: float) -> list[ToolOutcome]:
    """Return the outcome of each job; each call is limited to `seconds`, and exceptions become results."""
    if not jobs:
        return []
    with ThreadPoolExecutor(max_workers=min(len(jobs), MAX_CONCURRENT)) as pool:
        return list(pool.map(lambda job: _execute_job(job, seconds), jobs))


def _execute_job(job: ToolJob, seconds: float) -> ToolOutcome:
    results: list[ToolResult] = []
    for call in job.calls:
        result = _call_within(job, call, seconds)
        if result is None:
            late = ToolResult(call.name or "", f"Error: {call.name} did not end within {seconds:g} s", is_failure=True)
            return ToolOutcome([*results, late], is_hanging=True)
        results.append(result)
    return ToolOutcome(results)


def _call_within(job: ToolJob, call: ToolCall, seconds: float) -> ToolResult | None:
    """Return the call's result; None on a timeout, after which its thread keeps running."""
    done: list[ToolResult] = []
    thread = threading.Thread(target=lambda: done.append(_call(job, call)), daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else None


def _call(job: ToolJob, call: ToolCall) -> ToolResult:
    try:
        tool, arguments = _resolve_tool(job, call)
        return ToolResult(call.name or "", _to_content(tool(**arguments)))
    except ToolError as error:
        return ToolResult(call.name or "", f"Error: {error}", is_failure=True)
    except Exception as error:  # whatever a tool raises, the episode continues
        logger.warning("tool %r raised %s: %s", call.name, type(error).__name__, error, exc_info=True)
        return ToolResult(call.name or "", f"Error: {type(error).__name__}: {error}", is_failure=True)


def _resolve_tool(job: ToolJob, call: ToolCall) -> tuple[Tool, Mapping[str, object]]:
    """Return the tool and its arguments if both are valid.

    Raises:
        ToolError: there is no such tool, or it does not accept these arguments.
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
    return tools[call.name], call.arguments


def _to_content(value: object) -> Content:
    """Return a tool's return value as content: blocks unchanged, anything else as text."""
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    if isinstance(value, list) and value and all(isinstance(block, dict) and "type" in block for block in value):
        return value
    return str(value)
