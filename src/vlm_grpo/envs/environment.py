"""What an environment is: a class with `reset`, typed methods that the model may call, and `get_reward`.

```python
class Guess:
    done = False

    def reset(self, **row) -> str | list | None: ...  # text or blocks for the last user turn
    def see(self, **facts) -> None: ...  # optional: images, their sizes, the space of the model's boxes
    def guess(self, number: int) -> str: ...  # every other public method is a tool; its docstring describes it
    def failed(self, name: str, problem: str) -> None: ...  # optional: a call that could not be made, or raised
    def finish(self, text: str) -> None: ...  # optional: the last turn of the assistant, when the episode is over
    def get_reward(self) -> float: ...
    def metrics(self) -> dict[str, float]: ...  # optional: averaged in the logs
```

Nothing here runs a model; `rollouts/multi_turn.py` plays, `calls.py` runs what the model calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RESERVED = ("reset", "see", "failed", "finish", "get_reward", "metrics")
Content = str | list[dict[str, Any]]  # text, or blocks of text and images


class ToolError(Exception):
    """What went wrong with a call, in words for the model: they are what it is shown."""


def tools_of(environment: Any) -> dict[str, Callable[..., Any]]:
    """The tools of an environment by name: its public methods, bound, but those of RESERVED."""
    found = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    names = [name for name, _ in found if not name.startswith("_") and name not in RESERVED]
    return {name: getattr(environment, name) for name in names}


def schema_of(name: str, tool: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a tool, from its type hints and its Google-style docstring.

    Raises:
        ValueError: a hint or the description of an argument is missing.
    """
    from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    try:
        return get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"tool {name!r}: needs a type hint for every argument and a docstring with an 'Args:' section that "
            f"describes each: {error}"
        ) from error


def check_environment(name: str, environment: Any) -> None:
    """Find out before a rollout whether an object can be played.

    Raises:
        ValueError: it has no `reset`, or a tool without type hints or docstring.
    """
    if not callable(getattr(environment, "reset", None)):
        raise ValueError(f"environment {name!r}: {type(environment).__name__} must have a method 'reset'")
    for tool_name, tool in tools_of(environment).items():
        schema_of(tool_name, tool)


def extended(prompt: list[dict[str, Any]], observation: Content | None) -> list[dict[str, Any]]:
    """The prompt with what `reset` gave at the end of its last turn; without a prompt a user turn of its own."""
    if observation is None or observation == "":
        return prompt
    if not prompt:
        return [{"role": "user", "content": observation}]
    last = prompt[-1]
    if isinstance(observation, str) and isinstance(last["content"], str):
        joined: Content = last["content"] + observation
    else:
        joined = [*blocks_of(last["content"]), *blocks_of(observation)]
    return [*prompt[:-1], {**last, "content": joined}]


def blocks_of(content: Content | None) -> list[dict[str, Any]]:
    """Content as blocks; empty text is no block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [dict(block) for block in content or []]


def join_text(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks with neighbouring text in one of them: some templates show the first block of a turn alone."""
    joined: list[dict[str, Any]] = []
    for block in blocks:
        if joined and block["type"] == joined[-1]["type"] == "text":
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + block["text"]}
        else:
            joined.append(dict(block))
    return joined
