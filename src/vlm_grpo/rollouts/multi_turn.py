"""Rollouts of several turns: the model and its tools take turns, for all rows of a rollout together.

The loop knows nothing of how tokens are generated; the trainers and the evaluation each hand it a `generate`.
Rules: every token of the assistant is trained, every other one is masked; the calls of a turn run side by side; a
result for which no tokens are left is not shown; a trajectory is over when its environment says `done`, at a turn
without a call or that was cut off, and after `max_turns` turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_grpo.envs.tool_executor import ToolJob, execute_tool_calls
from vlm_grpo.envs.tool_parser import ToolResult
from vlm_grpo.rewards.tool_call import ToolCall
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.observations import encode_results
from vlm_grpo.rollouts.segment import EMPTY_SEGMENT, as_next_prompt
from vlm_grpo.rollouts.trajectory import Trajectory


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
    jobs = [ToolJob(episode.tools, _calls(episode, rules), episode.protocol.example) for episode in episodes]
    done = execute_tool_calls(jobs, rules.seconds)
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


def _calls(episode: Trajectory, rules: EpisodeLimits) -> list[ToolCall]:
    """The calls of the last turn; none where it was cut off."""
    is_whole = bool(episode.later.ids) and episode.later.ids[-1] in rules.ends
    return episode.protocol.calls(episode.last_text) if is_whole else []


def _show(episode: Trajectory, results: Sequence[ToolResult], encoder: PromptEncoder, rules: EpisodeLimits) -> None:
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


class MultiTurnRollout:
    """Runs the rows of a rollout in their environments, turn by turn.

    Args:
        encoder: encodes what tools return.
        placeholders: tokens that stand for images and videos; a completion in which the model wrote one is left out.
        end: token that ends a turn.
    """

    def __init__(self, encoder: PromptEncoder, placeholders: Collection[int], end: int) -> None:
        self.encoder, self.placeholders, self.end = encoder, frozenset(placeholders), end

    def collect(
        self,
        trajectories: Sequence[Trajectory],
        prompts: Sequence[EncodedPrompt],
        facts: Mapping[str, Any],
        limits: EpisodeLimits,
        generate: GenerateTurns,
        any_rank: Callable[[bool], bool],
    ) -> None:
        """Run all trajectories to their ends.

        Args:
            trajectories: begun by the pool.
            prompts: encoded, one for each of them.
            facts: what environments are told beside the facts of their prompt.
            limits: when a trajectory is over.
            generate: from trajectories and a number of tokens to the tokens of their next turns.
            any_rank: whether a claim holds on any process.
        """
        for trajectory, prompt in zip(trajectories, prompts, strict=True):
            trajectory.begin(prompt, {**self.encoder.facts(prompt), **facts})
        run_trajectories(trajectories, generate, self.encoder, limits, any_rank)
        for trajectory in trajectories:
            self._drop_if_broken(trajectory)

    def _drop_if_broken(self, trajectory: Trajectory) -> None:
        """Leave a completion whose model wrote a placeholder of images out of the loss: no pixels belong to it."""
        own = [token for token, is_own in zip(trajectory.later.ids, trajectory.mask, strict=True) if is_own]
        trajectory.is_dropped = not self.placeholders.isdisjoint(own)
        if trajectory.is_dropped:
            trajectory.later, trajectory.mask = replace(EMPTY_SEGMENT, ids=[self.end]), [0]


def trajectory_metrics(trajectory: Trajectory) -> dict[str, float]:
    """Return the numbers of a trajectory to log, the environment's own among them."""
    counts = {"turns": trajectory.turns, "calls": trajectory.calls, "failed_calls": trajectory.failures}
    numbers = {**counts, **trajectory.metrics(), "dropped": trajectory.is_dropped}
    return {f"episodes/{name}": float(value) for name, value in numbers.items()}
