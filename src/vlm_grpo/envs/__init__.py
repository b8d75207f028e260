"""Environments in which the model calls tools, selected by the run or by a data row.

`ENVIRONMENTS` has the path of each class, which is imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from vlm_grpo.envs.environment import Environment, ToolError
from vlm_grpo.envs.tool_parser import make_tool_call_str, parse_tool_call_str
from vlm_grpo.import_utils import is_file_spec, load_from_file
from vlm_grpo.registry import Registry

__all__ = ["ENVIRONMENTS", "Environment", "ToolError", "find_environment", "make_tool_call_str", "parse_tool_call_str"]

ENVIRONMENTS: Registry[str | Callable[..., object]] = Registry(
    "environment",
    {
        "pick_image": "vlm_grpo.envs.pick_image:PickImage",
        "visual_crop": "vlm_grpo.envs.visual_crop:VisualCrop",
        "agent_search": "vlm_grpo.envs.agent_search:AgentSearch",
        "agent_code": "vlm_grpo.envs.agent_code:AgentCode",
        "visual_code": "vlm_grpo.envs.visual_code:VisualCode",
    },
)


def find_environment(name: str | Callable[..., object]) -> Callable[..., object]:
    """Return the factory of an environment: a name in ENVIRONMENTS, `file.py:Class`, or a factory itself.

    Raises:
        KeyError: the name is unknown.
        ValueError: the file does not exist, or has nothing with that name.
    """
    if not isinstance(name, str):
        return name
    if is_file_spec(name):
        return load_from_file("environment", name)
    entry = ENVIRONMENTS[name]
    if not isinstance(entry, str):
        return entry
    module, _, kind = entry.partition(":")
    return getattr(import_module(module), kind)
