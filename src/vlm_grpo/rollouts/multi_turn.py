"""Episodes: the model and its tools take turns, for all rows of a rollout together.

The loop knows nothing of how tokens are generated; the trainers and the evaluation each hand it a `complete`.
Rules: every token of the assistant is trained, every other one is masked; the calls of a turn run side by side; a
result for which no tokens are left is not shown; an episode is over when its environment says `done`, at a turn without
a call or that was cut off, and after `max_turns` turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_grpo.envs.calls import Job, run
from vlm_grpo.envs.environment import Content, blocks_of
from vlm_grpo.envs.protocol import Result, ToolProtocol
from vlm_grpo.rewards.calling import DEFAULT_LIMIT, call_method, method_name
from vlm_grpo.rewards.tool import Call
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.observations import encode_results, without_images
from vlm_grpo.rollouts.segment import EMPTY_SEGMENT, CompletionSegment, as_next_prompt, concat_segments


@dataclass(frozen=True)
class EpisodeLimits:
    """When an episode is over, and what ends a turn.

    Attributes:
        most_tokens: of a completion in all, results included.
        max_turns: of the assistant.
        seconds: that one call may take.
        ends: tokens that end a turn.
    """

    most_tokens: int
    max_turns: int
    seconds: float
    ends: Collection[int]


@dataclass
class Trajectory:
    """One row of a rollout while it is played: `later` is its completion so far, `mask` 1 where that is the model's."""

    name: str | None  # of the environment in its run
    environment: Any
    tools: Mapping[str, Callable[..., Any]]
    protocol: ToolProtocol
    schemas: Sequence[Mapping[str, Any]] | None = None
    prompt: EncodedPrompt | None = None
    later: CompletionSegment = EMPTY_SEGMENT
    mask: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)  # each of the model as a whole turn
    openings: list[str] = field(default_factory=list)  # of the model's turns: what the prompt wrote of each
    calls_of_turns: list[Sequence[Call]] = field(default_factory=list)  # in each of the model's turns
    opening: str = ""  # of the turn that was heard last, or of the next one
    results: list[Result] = field(default_factory=list)  # of all calls, also those that the model was not shown
    turns: int = 0
    calls: int = 0
    failures: int = 0
    is_over: bool = False
    is_hanging: bool = False  # a call still runs: the environment cannot be used again
    row: str = ""  # where the row stands, for errors
    method_seconds: float = DEFAULT_LIMIT  # that a method of the environment may take

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

    def show(self, turn: CompletionSegment, results: Sequence[Result]) -> None:
        """Add the results of its calls."""
        self.opening = turn.opening
        self.later = concat_segments(self.later, turn)
        self.mask += [0] * len(turn.ids)
        self.messages += [{"role": "tool", "name": r.name, "content": blocks_of(r.content)} for r in results]

    def fail(self, result: Result) -> None:
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
            place = method_name(self.environment, "metrics", self.row)
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

    def _turn(self, content: str, opening: str, calls: Sequence[Call]) -> dict[str, Any]:
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


GenerateTurns = Callable[[list[Trajectory], int], list[list[int]]]


def run_trajectories(
    episodes: Sequence[Trajectory],
    complete: GenerateTurns,
    encoder: PromptEncoder,
    rules: EpisodeLimits,
    anyone: Callable[[bool], bool] = bool,
) -> None:
    """Play all episodes to their ends.

    Args:
        complete: from episodes and a number of tokens to the tokens of their next turns.
        anyone: whether a claim is true on any process; all take part in every round, one whose episodes are over with
            an empty list.
    """
    while anyone(bool(active := [episode for episode in episodes if not episode.is_over])):
        room = max((rules.most_tokens - len(episode.mask) for episode in active), default=1)
        turns = complete(active, room)
        for episode, ids in zip(active, turns, strict=True):
            kept = ids[: rules.most_tokens - len(episode.mask)]
            episode.hear(kept, encoder.decode(kept))
        run_tools(active, encoder, rules)
    for episode in episodes:
        if hasattr(episode.environment, "finish") and not episode.is_hanging:
            episode.ask("finish", episode.last_text)


def run_tools(episodes: Sequence[Trajectory], encoder: PromptEncoder, rules: EpisodeLimits) -> None:
    """Run what was called in the last turn of each episode, and show what came of it."""
    jobs = [Job(episode.tools, _calls(episode, rules), episode.protocol.example) for episode in episodes]
    done = run(jobs, rules.seconds)
    for episode, job, (results, is_hanging) in zip(episodes, jobs, done, strict=True):
        episode.calls_of_turns.append(job.calls)
        episode.calls += len(results)
        episode.results += results
        episode.is_hanging |= is_hanging
        for result in results:
            if result.is_failure:
                episode.fail(result)
        is_done = not job.calls or is_hanging or bool(getattr(episode.environment, "done", False))
        episode.is_over = is_done or episode.turns >= rules.max_turns
        if not episode.is_over:
            _show(episode, results, encoder, rules)


def _calls(episode: Trajectory, rules: EpisodeLimits) -> list[Call]:
    """The calls of the last turn; none where it was cut off."""
    is_whole = bool(episode.later.ids) and episode.later.ids[-1] in rules.ends
    return episode.protocol.calls(episode.last_text) if is_whole else []


def _show(episode: Trajectory, results: Sequence[Result], encoder: PromptEncoder, rules: EpisodeLimits) -> None:
    """Add the results; where they leave no room for an answer, the episode is over without them."""
    schemas = episode.schemas if episode.protocol.is_native else None
    turn = encode_results(encoder, episode.protocol, results, episode.later.ids[-1], schemas)
    if len(episode.mask) + len(turn.ids) >= rules.most_tokens:
        episode.is_over = True
    else:
        episode.show(turn, results)


def next_prompt(episode: Trajectory) -> EncodedPrompt:
    """What the model continues; the same object for all episodes of a prompt that have not begun."""
    return episode.prompt if not episode.later.ids else as_next_prompt(episode.prompt, episode.later)
