"""The base class of environments, and what the agent loop needs to know about one: its tools and their schemas.

Nothing here runs a model. `rollouts/multi_turn.py` runs episodes, `tool_executor.py` runs the tool calls in them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from vlm_grpo.records import Block, JsonObject, Message

RESERVED = ("reset", "see", "failed", "finish", "get_reward", "metrics")
Tool = Callable[..., object]  # a method with type hints and a docstring; its result is shown to the model
Content = str | list[Block]  # text, or blocks of text and images


class ToolError(Exception):
    """A tool call that failed. The model is shown the message, so word it for the model."""


class Environment:
    """An environment in which the model calls tools; one instance runs one episode at a time.

    Subclass it, or write any class with `reset` and typed tool methods. Every public method that is not a hook below
    is a tool: the type hints and the Google-style docstring become its JSON schema, the return value (text, or a list
    of text and image blocks) is shown to the model, and a ToolError tells the model what it did wrong.

    ```python
    class Guess(Environment):
        def reset(self, target: int = 7, **row) -> str:
            self.target, self.guesses, self.done = target, 0, False
            return "Guess a number from 1 to 10."

        def guess(self, number: int) -> str:
            '''Guess the number.

            Args:
                number: From 1 to 10.
            '''
            self.guesses += 1
            self.done = number == self.target
            return "correct" if self.done else "higher" if number < self.target else "lower"

        def get_reward(self) -> float:
            return 1.0 / self.guesses if self.done else 0.0
    ```

    Hooks, in the order of the calls:

    1. `reset(**row)`: start an episode for a data row. Required.
    2. `see(**facts)`: receive facts about the images once the prompt is encoded.
    3. `failed(name, problem)`: a tool call could not be parsed, was invalid, or raised an exception.
    4. `finish(text)`: the episode is over; `text` is the model's last turn.
    5. `get_reward()`: the episode's reward, a number or None; may be a coroutine function. Optional and not defined
       here: only classes that define it contribute a reward, other episodes are scored by `--reward_funcs` alone.
    6. `metrics()`: finite numbers to average in the logs.

    All arguments of `reset` and `see` are passed by keyword. Instances are reused for later episodes, so `reset` must
    clear all state, `done` included.

    Attributes:
        done: set to True by a tool or hook to end the episode after the current turn.
        TAGS: with `--tool_format tags`, the tool's name for each tag; None uses the tools' names as tags.
        MAKES_EPISODES: whether the environment generates its own episodes and needs no data file.
    """

    TAGS: ClassVar[Mapping[str, str] | None] = None
    MAKES_EPISODES: ClassVar[bool] = False
    done: bool = False

    def reset(self, *args: Any, **row: Any) -> Content | None:
        """Start an episode and return what to append to the last user turn: text, blocks, or None.

        Args:
            row: the columns of the data row.
        """
        raise NotImplementedError(f"{type(self).__name__} must define reset(self, **row)")

    def see(self, *args: Any, **facts: Any) -> None:
        """Receive the prompt's `images`, their sizes and the coordinate space of the model's boxes."""

    def failed(self, name: str, problem: str) -> None:
        """Handle a tool call that could not be executed or raised an exception."""

    def finish(self, text: str) -> None:
        """Handle the model's last turn at the end of the episode."""

    def metrics(self) -> dict[str, float]:
        """Return finite numbers about the finished episode, to be averaged in the logs."""
        return {}


def tools_of(environment: object) -> dict[str, Tool]:
    """Return an environment's tools by name: its bound public methods except the hooks (RESERVED)."""
    methods = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    names = [name for name, _ in methods if not name.startswith("_") and name not in RESERVED]
    return {name: getattr(environment, name) for name in names}


def tool_schema(name: str, tool: Tool) -> JsonObject:
    """Return the JSON schema of a tool, built from its type hints and its Google-style docstring.

    Raises:
        ValueError: a type hint or the description of an argument is missing.
    """
    from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    try:
        return get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"tool {name!r}: needs a type hint for every argument and a docstring with an 'Args:' section that "
            f"describes each: {error}"
        ) from error


def validate_environment(name: str, environment: object) -> None:
    """Check before the first rollout that an object is a valid environment.

    Raises:
        ValueError: it has no `reset`, or a tool lacks type hints or a docstring.
    """
    if getattr(type(environment), "reset", None) is Environment.reset or not callable(
        getattr(environment, "reset", None)
    ):
        raise ValueError(f"environment {name!r}: {type(environment).__name__} must have a method 'reset'")
    for tool_name, tool in tools_of(environment).items():
        tool_schema(tool_name, tool)


def append_observation(prompt: list[Message], observation: Content | None) -> list[Message]:
    """Return the prompt with the observation of `reset` appended to its last turn; without a prompt, as a user turn."""
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


def blocks_of(content: Content | None) -> list[Block]:
    """Return content as a list of blocks; empty text becomes no block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [dict(block) for block in content or []]


def merge_text_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with adjacent text merged: some templates render only the first text block of a turn."""
    joined: list[Block] = []
    for block in blocks:
        if joined and block["type"] == joined[-1]["type"] == "text":
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + block["text"]}
        else:
            joined.append(dict(block))
    return joined
