"""The trajectory of one row in a multi-turn rollout: its completion so far, its messages and its counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlm_grpo.envs.environment import Content, blocks_of
from vlm_grpo.envs.tool_parser import ToolParser, ToolResult
from vlm_grpo.records import Block, JsonSchema, Message
from vlm_grpo.rewards.tool_call import ToolCall
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.observations import without_images
from vlm_grpo.rollouts.segment import EMPTY_SEGMENT, CompletionSegment, concat_segments
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, call_method, describe_method_call

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Trajectory:
    """One row of a rollout in its environment.

    Attributes:
        environment_name: of the environment in its pool; None where the pool has only one.
        segment: the completion so far, tool results included.
        tool_mask: as long as the completion; 1 at the policy's tokens, 0 at those of tools.
        logprobs: of the completion's tokens as an engine sampled them, None at those of tools; empty where the engine
            is the policy itself.
        messages: of the completion; each of the assistant's is a whole turn, its opening included.
        openings: of each of the assistant's turns, the text that the prompt already wrote of it.
        calls_per_turn: the tool calls in each of the assistant's turns.
        opening: of the latest turn, or of the next one.
        results: of all calls, also those that the model was not shown.
        is_hanging: a call still runs, so the environment cannot be reused.
        is_dropped: left out of the loss, because the model wrote an image placeholder.
        location: of the row in the data, for error messages.
        method_time_limit: seconds that a method of the environment may take.
    """

    environment_name: str | None
    environment: object
    tools: Mapping[str, Callable[..., object]]
    tool_parser: ToolParser
    schemas: Sequence[JsonSchema] | None = None
    prompt: EncodedPrompt | None = None
    segment: CompletionSegment = EMPTY_SEGMENT
    tool_mask: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    openings: list[str] = field(default_factory=list)
    calls_per_turn: list[Sequence[ToolCall]] = field(default_factory=list)
    opening: str = ""
    results: list[ToolResult] = field(default_factory=list)
    num_turns: int = 0
    num_calls: int = 0
    num_failed_calls: int = 0
    is_over: bool = False
    is_hanging: bool = False
    is_dropped: bool = False
    location: str = ""
    method_time_limit: float = DEFAULT_TIME_LIMIT

    def call_environment(self, method: str, *arguments: object, **options: object) -> Any:
        """Return what a method of the environment returns.

        Raises:
            RuntimeError: it raised or took too long; the message names environment, method and row.
        """
        return call_method(self.environment, method, self.location, self.method_time_limit, *arguments, **options)

    @property
    def started_prompt(self) -> EncodedPrompt:
        """The encoded prompt of a trajectory that has started."""
        if self.prompt is None:
            raise RuntimeError(f"the trajectory of row {self.location or '?'} has not started")
        return self.prompt

    def start(self, prompt: EncodedPrompt, facts: Mapping[str, object]) -> None:
        """Set the encoded prompt, and pass its images and their facts to the environment's `see`."""
        self.prompt, self.opening = prompt, prompt.opening
        if hasattr(self.environment, "see"):
            self.call_environment("see", images=prompt.images, **facts)

    def add_assistant_turn(self, ids: list[int], text: str, logprobs: Sequence[float | None] = ()) -> None:
        """Append a turn of the model; `text` continues what the prompt wrote of the turn."""
        self.logprobs += logprobs
        self.segment = concat_segments(self.segment, CompletionSegment(ids, {}, {}, []))
        self.tool_mask += [1] * len(ids)
        self.messages.append({"role": "assistant", "content": self.opening + text})
        self.openings.append(self.opening)
        self.num_turns += 1

    def add_tool_results(self, segment: CompletionSegment, results: Sequence[ToolResult]) -> None:
        """Append the results of the latest turn's calls; `segment` holds them as tokens."""
        self.opening = segment.opening
        self.segment = concat_segments(self.segment, segment)
        self.tool_mask += [0] * len(segment.ids)
        if self.logprobs:
            self.logprobs += [None] * len(segment.ids)
        self.messages += [{"role": "tool", "name": r.name, "content": blocks_of(r.content)} for r in results]

    def record_failure(self, result: ToolResult) -> None:
        """Count a failed call, and report it to the environment, which may never have seen it."""
        self.num_failed_calls += 1
        if hasattr(self.environment, "failed") and not self.is_hanging:
            self.call_environment("failed", result.name, str(result.content))

    def metrics(self) -> Mapping[str, float]:
        """Return the environment's metrics of this episode; empty where it has none.

        Raises:
            RuntimeError: it raised, or one of them is no number; the message names environment and row.
        """
        values = self.call_environment("metrics") if hasattr(self.environment, "metrics") else {}
        try:
            numbers = {str(name): float(value) for name, value in values.items()}
        except (AttributeError, TypeError, ValueError):
            numbers = {"": math.nan}
        if not all(map(math.isfinite, numbers.values())):
            place = describe_method_call(self.environment, "metrics", self.location)
            raise RuntimeError(f"{place}: must return a mapping from name to a finite number, got {values!r:.200}")
        return numbers

    @property
    def last_text(self) -> str:
        """The assistant's last turn, including what the prompt wrote of it."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "assistant"), "")

    @property
    def messages_without_images(self) -> list[Message]:
        """All messages, with empty image blocks."""
        return [_without_images(message) for message in self.messages]

    def completion(self, *, with_images: bool = False) -> list[Message]:
        """Return all messages in the shape in which TRL passes them to reward functions.

        The assistant's turns hold only what the model wrote itself, with calls in `tool_calls` instead of in the text.
        Tool results are strings, or blocks where there is an image; without `with_images` image blocks are empty.
        """
        turns = zip(self.openings, self.calls_per_turn, strict=True)
        return [
            self._assistant_message(message["content"], *next(turns))
            if message["role"] == "assistant"
            else {**message, "content": _result_content(message["content"], with_images)}
            for message in self.messages
        ]

    def _assistant_message(self, content: str, opening: str, calls: Sequence[ToolCall]) -> Message:
        """Return a turn with its calls apart; a turn with a malformed call stays text."""
        text = content.removeprefix(opening)
        if not calls or any(call.name is None for call in calls):
            return {"role": "assistant", "content": text}
        functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        tool_calls = [{"type": "function", "function": function} for function in functions]
        return {"role": "assistant", "content": self.tool_parser.without_calls(text), "tool_calls": tool_calls}

    @property
    def images(self) -> list[Image.Image]:
        """The images that tools returned, in order."""
        blocks = [block for message in self.messages if message["role"] == "tool" for block in message["content"]]
        return [block["image"] for block in blocks if block["type"] == "image"]


def _result_content(content: list[Block], with_images: bool) -> Content:
    """Return the content of a tool result; a string where it is text alone."""
    if all(block["type"] == "text" for block in content):
        return "".join(block["text"] for block in content)
    return content if with_images else without_images(content)


def _without_images(message: Message) -> Message:
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": without_images(content)}
