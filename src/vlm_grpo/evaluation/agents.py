"""Episodes of data rows by a model in this process: the loop of training, with greedy or drawn turns.

An episode does not depend on those beside it, but for rounding, and for tools that do: each drawn turn has a random
stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_grpo.evaluation.generate import LocalModel
from vlm_grpo.evaluation.predictions import Answered, Completion, EpisodeError, Played
from vlm_grpo.evaluation.trajectory import Copies, trajectory
from vlm_grpo.records import Record
from vlm_grpo.rewards.adapter import checked, record_of_row
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.env_pool import EnvPool
from vlm_grpo.rollouts.messages import read_prompt
from vlm_grpo.rollouts.multi_turn import EpisodeLimits, next_prompt, run_trajectories
from vlm_grpo.rollouts.trajectory import Trajectory


@dataclass
class Agents:
    """Plays each row in its environment; what the model says last is the completion.

    Args:
        model: completes turns; its `max_completion_length` is that of an episode, results of tools included.
        stage: the environments.
        folder: of the evaluation, for copies of the images that tools showed.
        max_turns: of the model in an episode.
        tool_time_limit: seconds that one call may take.
        protocol: one of PROTOCOLS.

    Raises:
        EpisodeError: the model's chat template or the tools do not fit the protocol.
    """

    model: LocalModel
    stage: EnvPool
    folder: Path
    max_turns: int = 8
    tool_time_limit: float = 60.0
    protocol: str = "auto"

    def __post_init__(self) -> None:
        try:
            self.stage.choose_protocols(self.protocol, self.model.processor.chat_template)
        except ValueError as error:
            raise EpisodeError(str(error)) from error

    def __call__(self, dataset: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> Iterator[list[Answered]]:
        """The numbered rows with their episodes, a batch at a time, in order.

        Raises:
            EpisodeError: an environment refuses a row, or an image cannot be decoded.
        """
        encoder = self.model.encoder()
        for chosen in self.model.batches(numbers):
            yield self._answered(encoder, chosen, [dataset[number] for number in chosen])

    def _answered(
        self, encoder: PromptEncoder, numbers: Sequence[int], rows: Sequence[Mapping[str, Any]]
    ) -> list[Answered]:
        drawn = self.model.sampling.num_samples
        places = [(number, sample) for number in numbers for sample in range(drawn)]
        episodes, opened = self._begun(encoder, [row for row in rows for _ in range(drawn)])
        run_trajectories(episodes, self._turns_of(episodes, places), encoder, self._rules())
        done = [self._completion(encoder, *item) for item in zip(places, episodes, opened, strict=True)]
        self.stage.end(episodes)
        return [
            Answered(
                number,
                {**row, "record": record_of_opened(row, opened[place * drawn])},
                done[place * drawn : (place + 1) * drawn],
            )
            for place, (number, row) in enumerate(zip(numbers, rows, strict=True))
        ]

    def _begun(
        self, encoder: PromptEncoder, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Trajectory], list[dict[str, Any]]]:
        """The episodes of some rows, which know their prompts, and the rows as their environments begin them."""
        try:
            episodes, opened = self.stage.begin(rows)
            samples = encoder.encode(opened)
        except (ValueError, OSError, RuntimeError) as error:
            raise EpisodeError(str(error)) from error
        for episode, sample in zip(episodes, samples, strict=True):
            episode.begin(sample, self.model.facts(encoder, sample))
        return episodes, opened

    def _rules(self) -> EpisodeLimits:
        return EpisodeLimits(
            most_tokens=self.model.max_completion_length,
            max_turns=self.max_turns,
            seconds=self.tool_time_limit,
            ends=self.model.ends,
        )

    def _turns_of(self, episodes: Sequence[Trajectory], places: Sequence[tuple[int, int]]) -> Any:
        """What the loop asks for the next turn of some of these episodes, at most `room` tokens of each."""
        place_of = {id(episode): place for episode, place in zip(episodes, places, strict=True)}

        def next_turns(active: list[Trajectory], room: int) -> list[list[int]]:
            seeds = [self.model.sampling.seed_of(*place_of[id(episode)], episode.turns) for episode in active]
            return self.model.tokens_after([next_prompt(episode) for episode in active], seeds, room)

        return next_turns

    def _completion(
        self, encoder: PromptEncoder, place: tuple[int, int], episode: Trajectory, opened: Mapping[str, Any]
    ) -> Completion:
        """What the model said last, and all that was played.

        Raises:
            RuntimeError, TypeError: the environment's reward raised, or is no number; the message names the record.
        """
        numbers = _numbers(episode, record_of_row(opened))
        turns = trajectory(opened["prompt"], episode, Copies(self.folder, *place))
        return Completion(
            episode.last_text,
            sum(episode.mask),
            episode.later.ids[-1] not in self.model.ends,
            {**self.model.facts(encoder, episode.prompt), "turn_opening": episode.opening},
            Played(numbers, turns),
        )


def _numbers(episode: Trajectory, record: Record) -> dict[str, float]:
    """Counts, the environment's reward and its metrics, of a finished episode."""
    environment = episode.environment
    counts = {"turns": episode.turns, "calls": episode.calls, "failed_calls": episode.failures}
    reward = None
    if hasattr(environment, "get_reward"):
        name = type(environment).__name__
        reward = checked(name, lambda text, record: episode.ask("get_reward"), episode.last_text, record)
    rewards = {} if reward is None else {"reward": reward}
    found = {**counts, **rewards, **episode.metrics()}  # metrics last: some follow from the reward
    return {name: float(value) for name, value in found.items()}


def record_of_opened(row: Mapping[str, Any], opened: Mapping[str, Any]) -> Record:
    """The row's record; for an episode that its environment made, one of what the model is asked and shown."""
    if row.get("prompt"):
        return record_of_row(row)
    prompt = read_prompt(opened)
    content = prompt.messages[-1]["content"] if prompt.messages else ""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text = "".join(block.get("text", "<image>") for block in blocks)
    return Record(
        id=row.get("episode", row.get("id", "")),
        question=text,
        answer=None,
        images=tuple(prompt.images),
        where=str(row.get("where", "")),
    )


def made_episodes(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows for an environment that makes its episodes itself: those that training with this seed begins with."""
    from vlm_grpo.envs.pick_image import repeatable_episodes

    return list(islice(repeatable_episodes(seed), count))
