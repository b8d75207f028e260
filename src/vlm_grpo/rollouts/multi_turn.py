"""Multi-turn rollouts: the model and its tools alternate, for all rows of a rollout together.

The loop knows nothing of how tokens are generated; the trainers and the evaluation each pass it a `generate`.
Rules: every token of the assistant is trained, every other one is masked; the calls of a turn run concurrently; a
result that leaves no room for an answer is not shown; a trajectory is over when its environment is `done`, after a turn
without a call or that was truncated, and after `max_turns` turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vlm_grpo.envs.tool_executor import ToolJob, execute_tool_calls
from vlm_grpo.envs.tool_parser import ToolResult
from vlm_grpo.rewards.tool_call import ToolCall
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.observations import encode_results
from vlm_grpo.rollouts.segment import EMPTY_SEGMENT, as_next_prompt
from vlm_grpo.rollouts.trajectory import Trajectory


@dataclass(frozen=True)
class EpisodeLimits:
    """When a trajectory is over, and what ends a turn.

    Attributes:
        max_tokens: of a completion in all, tool results included.
        max_turns: of the assistant.
        tool_time_limit: seconds that one tool call may take.
        stop_token_ids: tokens that end a turn.
    """

    max_tokens: int
    max_turns: int
    tool_time_limit: float
    stop_token_ids: Collection[int]


GenerateTurns = Callable[[list[Trajectory], int], Generation]


def run_tools(trajectories: Sequence[Trajectory], encoder: PromptEncoder, limits: EpisodeLimits) -> None:
    """Run the calls in the last turn of each trajectory, and append their results."""
    jobs = [ToolJob(each.tools, _last_calls(each, limits), each.tool_parser.example) for each in trajectories]
    outcomes = execute_tool_calls(jobs, limits.tool_time_limit)
    for trajectory, job, (results, is_hanging) in zip(trajectories, jobs, outcomes, strict=True):
        trajectory.calls_per_turn.append(job.calls)
        trajectory.num_calls += len(results)
        trajectory.results += results
        trajectory.is_hanging |= is_hanging
        for result in results:
            if result.is_failure:
                trajectory.record_failure(result)
        is_done = not job.calls or is_hanging or bool(getattr(trajectory.environment, "done", False))
        trajectory.is_over = is_done or trajectory.num_turns >= limits.max_turns
        if not trajectory.is_over:
            _add_results(trajectory, results, encoder, limits)


def _last_calls(trajectory: Trajectory, limits: EpisodeLimits) -> list[ToolCall]:
    """Return the calls of the last turn; none where it was truncated."""
    ids = trajectory.segment.ids
    is_complete = bool(ids) and ids[-1] in limits.stop_token_ids
    return trajectory.tool_parser.calls(trajectory.last_text) if is_complete else []


def _add_results(
    trajectory: Trajectory, results: Sequence[ToolResult], encoder: PromptEncoder, limits: EpisodeLimits
) -> None:
    """Append the results; where they leave no room for an answer, the trajectory is over without them."""
    parser = trajectory.tool_parser
    schemas = trajectory.schemas if parser.is_native else None
    segment = encode_results(encoder, parser, results, trajectory.segment.ids[-1], schemas)
    if len(trajectory.tool_mask) + len(segment.ids) >= limits.max_tokens:
        trajectory.is_over = True
    else:
        trajectory.add_tool_results(segment, results)


def next_prompt(trajectory: Trajectory) -> EncodedPrompt:
    """Return what the model continues; one object for all trajectories of a prompt that have no turn yet."""
    prompt = trajectory.started_prompt
    return as_next_prompt(prompt, trajectory.segment) if trajectory.segment.ids else prompt


class MultiTurnRollout:
    """Runs rows in their environments, turn by turn, for training and evaluation.

    Args:
        encoder: encodes the results of tools.
        placeholders: image and video tokens; a completion in which the model wrote one is left out of the loss.
        end_token_id: ends a turn.
    """

    def __init__(self, encoder: PromptEncoder, placeholders: Collection[int], end_token_id: int) -> None:
        self.encoder, self.placeholders, self.end_token_id = encoder, frozenset(placeholders), end_token_id

    def run(
        self,
        trajectories: Sequence[Trajectory],
        prompts: Sequence[EncodedPrompt],
        facts: Mapping[str, object],
        limits: EpisodeLimits,
        generate: GenerateTurns,
        any_rank: Callable[[bool], bool] = bool,
    ) -> None:
        """Run all trajectories until they are over.

        Args:
            trajectories: as `EnvPool.start` returns them.
            prompts: one for each trajectory.
            facts: passed to environments beside the image facts of their prompt.
            limits: when a trajectory is over.
            generate: from trajectories and a number of tokens to their next turns.
            any_rank: whether a claim holds on any process. All processes take part in every round, those whose
                trajectories are over with an empty list.
        """
        for trajectory, prompt in zip(trajectories, prompts, strict=True):
            trajectory.start(prompt, {**self.encoder.image_facts(prompt), **facts})
        while any_rank(bool(active := [trajectory for trajectory in trajectories if not trajectory.is_over])):
            self._take_turns(active, limits, generate)
        for trajectory in trajectories:
            if hasattr(trajectory.environment, "finish") and not trajectory.is_hanging:
                trajectory.call_environment("finish", trajectory.last_text)

    def drop_broken(self, trajectories: Sequence[Trajectory]) -> None:
        """Leave completions in which the model wrote an image placeholder out of the loss: they have no pixels."""
        for trajectory in trajectories:
            self._drop_if_broken(trajectory)

    def _take_turns(self, active: list[Trajectory], limits: EpisodeLimits, generate: GenerateTurns) -> None:
        rooms = [limits.max_tokens - len(trajectory.tool_mask) for trajectory in active]
        turns = generate(active, max(rooms, default=1))
        logprobs = turns.logprobs or [[] for _ in active]
        for trajectory, ids, logps, room in zip(active, turns.ids, logprobs, rooms, strict=True):
            trajectory.add_assistant_turn(ids[:room], self.encoder.decode(ids[:room]), logps[:room])
        run_tools(active, self.encoder, limits)

    def _drop_if_broken(self, trajectory: Trajectory) -> None:
        policy_ids = {
            token for token, mask in zip(trajectory.segment.ids, trajectory.tool_mask, strict=True) if mask == 1
        }
        trajectory.is_dropped = not self.placeholders.isdisjoint(policy_ids)
        if trajectory.is_dropped:
            trajectory.segment, trajectory.tool_mask = replace(EMPTY_SEGMENT, ids=[self.end_token_id]), [0]
            trajectory.logprobs = [None] if trajectory.logprobs else []


def trajectory_metrics(trajectory: Trajectory) -> dict[str, float]:
    """Return what is logged of a trajectory, its environment's metrics included."""
    counts = {
        "turns": trajectory.num_turns,
        "calls": trajectory.num_calls,
        "failed_calls": trajectory.num_failed_calls,
    }
    numbers = {**counts, **trajectory.metrics(), "dropped": trajectory.is_dropped}
    return {f"episodes/{name}": float(value) for name, value in numbers.items()}
