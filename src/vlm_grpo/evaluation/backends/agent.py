"""Run episodes of data rows with a model in this process, through the multi-turn rollout of training.

Up to rounding, an episode does not depend on its batch: each sampled turn has its own random stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vlm_grpo.evaluation.backends.hf import HFBackend
from vlm_grpo.evaluation.predictions import EpisodeError, EpisodeResult, RowCompletions, ScoredText
from vlm_grpo.evaluation.report.trajectory_view import ImageCopies, episode_trajectory
from vlm_grpo.records import Message, NewRow, Record, Row
from vlm_grpo.rewards.adapter import call_reward, record_of_row
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.env_pool import EnvPool
from vlm_grpo.rollouts.messages import read_prompt
from vlm_grpo.rollouts.multi_turn import EpisodeLimits, GenerateTurns, MultiTurnRollout, next_prompt
from vlm_grpo.rollouts.trajectory import Trajectory


@dataclass
class AgentBackend:
    """Runs one episode per row; the model's last turn is the completion.

    Args:
        model: generates turns; its `max_completion_length` limits a whole episode, including tool results.
        env_pool: the environments.
        folder: folder of the evaluation, for copies of images returned by tools.
        max_turns: maximum number of assistant turns per episode.
        tool_time_limit: time limit of a tool call in seconds.
        tool_format: one of TOOL_FORMATS.

    Raises:
        EpisodeError: the model's chat template or the tools are incompatible with the tool format.
    """

    model: HFBackend
    env_pool: EnvPool
    folder: Path
    max_turns: int = 8
    tool_time_limit: float = 60.0
    tool_format: str = "auto"

    def __post_init__(self) -> None:
        try:
            template = self.model.processor.chat_template
            self.env_pool.choose_tool_parsers(
                self.tool_format, template.get("default") if isinstance(template, dict) else template
            )
        except ValueError as error:
            raise EpisodeError(str(error)) from error

    def __call__(self, dataset: Sequence[Row], numbers: Sequence[int]) -> Iterator[list[RowCompletions]]:
        """Yield the rows with these numbers and their episodes, a batch at a time, in order.

        Raises:
            EpisodeError: an environment rejects a row, or an image cannot be decoded.
        """
        encoder = self.model.encoder()
        for batch in self.model.batches(numbers):
            yield self._run(encoder, batch, [dataset[number] for number in batch])

    def _run(self, encoder: PromptEncoder, numbers: Sequence[int], rows: Sequence[Row]) -> list[RowCompletions]:
        num_samples = self.model.sampling.num_samples
        samples = [(number, sample) for number in numbers for sample in range(num_samples)]
        repeated = [row for row in rows for _ in range(num_samples)]
        trajectories, started_rows, prompts = self._start(encoder, repeated)
        multi_turn = MultiTurnRollout(encoder, self.model.placeholders, min(self.model.stop_token_ids))
        facts, limits = {"answer_space": self.model.space}, self._limits()
        multi_turn.run(trajectories, prompts, facts, limits, self._generate_turns(trajectories, samples))
        completions = [
            self._completion(encoder, *item) for item in zip(samples, trajectories, started_rows, strict=True)
        ]
        self.env_pool.release(trajectories)
        return [
            RowCompletions(
                number,
                {**row, "record": record_of_episode(row, started_rows[index * num_samples])},
                completions[index * num_samples : (index + 1) * num_samples],
            )
            for index, (number, row) in enumerate(zip(numbers, rows, strict=True))
        ]

    def _start(
        self, encoder: PromptEncoder, rows: Sequence[Row]
    ) -> tuple[list[Trajectory], list[NewRow], list[EncodedPrompt]]:
        """Return trajectories, the rows with their environments' first observations, and their encoded prompts."""
        try:
            trajectories, started_rows = self.env_pool.start(rows)
            return trajectories, started_rows, encoder.encode(started_rows)
        except (ValueError, OSError, RuntimeError) as error:
            raise EpisodeError(str(error)) from error

    def _limits(self) -> EpisodeLimits:
        return EpisodeLimits(
            max_tokens=self.model.max_completion_length,
            max_turns=self.max_turns,
            tool_time_limit=self.tool_time_limit,
            stop_token_ids=self.model.stop_token_ids,
        )

    def _generate_turns(self, trajectories: Sequence[Trajectory], samples: Sequence[tuple[int, int]]) -> GenerateTurns:
        """Return a function that generates the next turns, each with its own random stream."""
        sample_of = {id(trajectory): sample for trajectory, sample in zip(trajectories, samples, strict=True)}

        def generate(active: list[Trajectory], max_new_tokens: int) -> Generation:
            seeds = [self.model.sampling.seed_of(*sample_of[id(each)], each.num_turns) for each in active]
            return Generation(self.model.generate([next_prompt(each) for each in active], seeds, max_new_tokens))

        return generate

    def _completion(
        self, encoder: PromptEncoder, sample: tuple[int, int], trajectory: Trajectory, started_row: Row
    ) -> ScoredText:
        """Return the model's last turn, and the whole episode.

        Raises:
            RuntimeError, TypeError: the environment's reward raised, or is not a number; the message names the record.
        """
        metrics = _episode_metrics(trajectory, record_of_row(started_row))
        turns = episode_trajectory(started_row["prompt"], trajectory, ImageCopies(self.folder, *sample))
        return ScoredText(
            trajectory.last_text,
            sum(trajectory.tool_mask),
            trajectory.segment.ids[-1] not in self.model.stop_token_ids,
            {**self.model.facts(encoder, trajectory.started_prompt), "turn_opening": trajectory.opening},
            EpisodeResult(metrics, turns),
        )


def _episode_metrics(trajectory: Trajectory, record: Record) -> dict[str, float]:
    """Return counts, the environment's reward and its metrics for a finished episode."""
    environment = trajectory.environment
    counts = {"turns": trajectory.num_turns, "calls": trajectory.num_calls, "failed_calls": trajectory.num_failed_calls}
    reward = None
    if hasattr(environment, "get_reward"):
        name = type(environment).__name__
        reward = call_reward(
            name, lambda text, record: trajectory.call_environment("get_reward"), trajectory.last_text, record
        )
    rewards = {} if reward is None else {"reward": reward}
    numbers = {**counts, **rewards, **trajectory.metrics()}  # metrics last: some depend on the reward
    return {name: float(value) for name, value in numbers.items()}


def record_of_episode(row: Row, started_row: Row) -> Record:
    """Return the row's record; for a generated episode, a record built from its prompt."""
    if row.get("prompt"):
        return record_of_row(row)
    prompt = read_prompt(started_row)
    messages = [{"content": prompt.messages}] if isinstance(prompt.messages, str) else prompt.messages
    content = messages[-1]["content"] if messages else ""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text = "".join(block.get("text", "<image>") for block in blocks)
    return Record(
        id=row.get("episode", row.get("id", "")),
        question=text,
        answer=None,
        images=tuple(prompt.images),
        where=str(row.get("where", "")),
    )


def environment_episodes(seed: int, count: int) -> list[Message]:
    """Return the first rows of training with this seed, for an environment that generates its episodes."""
    from vlm_grpo.envs.pick_image import repeatable_episodes

    return list(islice(repeatable_episodes(seed), count))
