"""`vlm-grpo tasks`, `rewards`, `algorithms`, `environments`, `engines` and `families`: list the entries of a table."""

from __future__ import annotations

import json
from inspect import signature
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_grpo.families import Family


def main(argv: list[str]) -> int:
    """Print the table of the command."""
    tables = {
        "tasks": task_lines,
        "rewards": reward_lines,
        "algorithms": algorithm_lines,
        "environments": environment_lines,
        "engines": engine_lines,
        "families": family_lines,
    }
    lines = tables[argv[0]]
    print("\n".join(lines()))
    return 0


def task_lines() -> list[str]:
    """Return name, metric, default rewards and completion format of every task."""
    from vlm_grpo.tasks import TASKS

    rewards = {
        name: " ".join(f"{key}:{weight:g}" for key, weight in task.rewards.items()) for name, task in TASKS.items()
    }
    width = max(map(len, rewards.values()))
    return [
        f"{name:<10} metric {task.metric:<9} rewards {rewards[name]:<{width}}  answer {task.answer}"
        + (f"; accuracy method {task.method}" if task.method else "")
        for name, task in TASKS.items()
    ]


def reward_lines() -> list[str]:
    """Return the name of every reward and the first line of its docstring."""
    from vlm_grpo.rewards import REWARDS

    return [f"{name:<18} {first_line(reward)}" for name, reward in REWARDS.items()]


def algorithm_lines() -> list[str]:
    """Return name, trainer, summary and paper of every algorithm, its formula and its options."""
    from vlm_grpo.algorithms import ALGORITHMS

    lines = []
    for name, entry in ALGORITHMS.items():
        lines.append(f"{name:<28} {entry.trainer:<5} {entry.summary} ({entry.paper})")
        lines.append(f"{'':<34} {entry.formula}")
        if entry.options:
            lines.append(f"{'':<34} --algorithm_options '{json.dumps(entry.options)}'")
    return lines


def environment_lines() -> list[str]:
    """Return the name of every environment, the first line of its docstring, and its options with defaults."""
    from vlm_grpo.envs import ENVIRONMENTS, find_environment

    lines = []
    for name in ENVIRONMENTS:
        kind = find_environment(name)
        lines.append(f"{name:<14} {first_line(kind)}")
        options = {key: value.default for key, value in signature(kind).parameters.items()}
        lines.append(f"{'':<14} --environment_options '{json.dumps(options, default=str)}'")
    return lines


def engine_lines() -> list[str]:
    """Return the name of every rollout engine, and a line about it."""
    from vlm_grpo.rollouts.engines.summaries import SUMMARIES

    return [f"{name:<14} {summary}" for name, summary in SUMMARIES.items()]


def family_lines() -> list[str]:
    """Return the features of each model family and examples of its checkpoints."""
    from vlm_grpo.families import FAMILIES

    lines = []
    for name, family in FAMILIES.items():
        prefix, video, tools, space = family_cells(family)
        lines.append(f"{name:<23} shared prefix {prefix:<31} videos {video:<4} boxes {space:<9} tools {tools}")
        lines.append(f"{'':<23} {', '.join(family.checkpoints)}")
    return lines


def family_cells(family: Family) -> tuple[str, str, str, str]:
    """Return shared prefix, videos, tools and coordinate space of a family as text."""
    prefix = "yes" if family.refuses_prefix is None else f"no: {family.refuses_prefix}"
    return prefix, "yes" if family.has_video else "no", family.tools or "-", family.coordinate_space or "-"


def first_line(reward: object) -> str:
    """Return the first line of a docstring; for a partial function with its bound options."""
    options = ", ".join(f"{name}={value}" for name, value in getattr(reward, "keywords", {}).items())
    line = (getattr(reward, "func", reward).__doc__ or "").strip().splitlines()[0]
    return f"{line} ({options})" if options else line
