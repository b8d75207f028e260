"""One row of a rollout while the model and its tools take turns: its completion so far, its messages, its counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_grpo.envs.environment import Content, blocks_of
from vlm_grpo.envs.tool_parser import ToolParser, ToolResult
from vlm_grpo.rewards.tool_call import ToolCall
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.observations import without_images
from vlm_grpo.rollouts.segment import EMPTY_SEGMENT, CompletionSegment, concat_segments
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, call_method, describe_method_call


@dataclass
class Trajectory:
    """One row of a rollout while it is played: `later` is its completion so far, `mask` 1 where that is the model's."""

    name: str | None  # of the environment in its run
    environment: Any
    tools: Mapping[str, Callable[..., Any]]
    protocol: ToolParser
    schemas: Sequence[Mapping[str, Any]] | None = None
    prompt: EncodedPrompt | None = None
    later: CompletionSegment = EMPTY_SEGMENT
    mask: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)  # each of the model as a whole turn
    openings: list[str] = field(default_factory=list)  # of the model's turns: what the prompt wrote of each
    calls_of_turns: list[Sequence[ToolCall]] = field(default_factory=list)  # in each of the model's turns
    opening: str = ""  # of the turn that was heard last, or of the next one
    results: list[ToolResult] = field(default_factory=list)  # of all calls, also those that the model was not shown
    turns: int = 0
    calls: int = 0
    failures: int = 0
    is_over: bool = False
    is_hanging: bool = False  # a call still runs: the environment cannot be used again
    is_dropped: bool = False  # from the loss: the model wrote a placeholder of images
    row: str = ""  # where the row stands, for errors
    method_seconds: float = DEFAULT_TIME_LIMIT  # that a method of the environment may take

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return what a method of the environment returns.

        Raises:
            RuntimeError: it raised or took too long; the message names environment, method and row.
        """
        return call_method(self.environment, method, self.row, self.method_seconds, *arguments, **options)

    def hear(self, ids: list[int], text: str) -> None:
        """Add a turn of the model, which goes on where the prompt has begun it."""
        self.later = concat_segments(self.later, CompletionSegment(ids, {}, {}, []))
        self.mask += [1] * len(ids)
        self.messages.append({"role": "assistant", "content": self.opening + text})
        self.openings.append(self.opening)
        self.turns += 1

    def show(self, turn: CompletionSegment, results: Sequence[ToolResult]) -> None:
        """Add the results of its calls."""
        self.opening = turn.opening
        self.later = concat_segments(self.later, turn)
        self.mask += [0] * len(turn.ids)
        self.messages += [{"role": "tool", "name": r.name, "content": blocks_of(r.content)} for r in results]

    def fail(self, result: ToolResult) -> None:
        """Count a call that failed, and tell the environment, which may never have seen it."""
        self.failures += 1
        if hasattr(self.environment, "failed") and not self.is_hanging:
            self.ask("failed", result.name, str(result.content))

    def begin(self, prompt: EncodedPrompt, facts: Mapping[str, Any]) -> None:
        """Take the encoded prompt, and tell the environment what is known of its images."""
        self.prompt, self.opening = prompt, prompt.opening
        if hasattr(self.environment, "see"):
            self.ask("see", images=prompt.images, **facts)

    def metrics(self) -> Mapping[str, float]:
        """The environment's numbers of this episode; empty where it gives none.

        Raises:
            RuntimeError: it raised, or one of them is no number; the message names environment and row.
        """
        found = self.ask("metrics") if hasattr(self.environment, "metrics") else {}
        try:
            numbers = {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError):
            numbers = {"": math.nan}
        if not all(map(math.isfinite, numbers.values())):
            place = describe_method_call(self.environment, "metrics", self.row)
            raise RuntimeError(f"{place}: must return a mapping from name to a finite number, got {found!r:.200}")
        return numbers

    @property
    def last_text(self) -> str:
        """The model's last turn, with what the prompt had opened of it."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "assistant"), "")

    @property
    def shown(self) -> list[dict[str, Any]]:
        """All messages, without pixels."""
        return [_without_pixels(message) for message in self.messages]

    def completion(self, *, with_images: bool = False) -> list[dict[str, Any]]:
        """Return all messages in the shape in which TRL hands them to reward functions.

        Of the model's turns that is what it wrote itself, with calls in `tool_calls` instead of in the text; results of
        tools are strings, or blocks where there is an image. Without `with_images` blocks of images are empty.
        """
        turns = zip(self.openings, self.calls_of_turns, strict=True)
        return [
            self._turn(message["content"], *next(turns))
            if message["role"] == "assistant"
            else {**message, "content": _plain(message["content"], with_images)}
            for message in self.messages
        ]

    def _turn(self, content: str, opening: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """A turn of the model; one with a call that cannot be read stays text."""
        text = content.removeprefix(opening)
        if not calls or any(call.name is None for call in calls):
            return {"role": "assistant", "content": text}
        functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        tool_calls = [{"type": "function", "function": function} for function in functions]
        return {"role": "assistant", "content": self.protocol.without_calls(text), "tool_calls": tool_calls}

    @property
    def images(self) -> list[Any]:
        """What the tools showed."""
        shown = [block for message in self.messages if message["role"] == "tool" for block in message["content"]]
        return [block["image"] for block in shown if block["type"] == "image"]


def _plain(content: list[dict[str, Any]], with_images: bool) -> Content:
    """The content of a result: text as a string."""
    if all(block["type"] == "text" for block in content):
        return "".join(block["text"] for block in content)
    return content if with_images else without_images(content)


def _without_pixels(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": without_images(content)}
