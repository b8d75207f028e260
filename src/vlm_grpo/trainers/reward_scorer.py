"""The arguments of reward functions, and the weighted sum of what they return. TRL calls the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vlm_grpo.algorithms.trl_advantages import weighted_sum
from vlm_grpo.records import Row
from vlm_grpo.rollouts.decoding import add_turns
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder, unique_prompts
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.rollouts.rollout import Rollout, whole_turns
from vlm_grpo.trainers.completion_log import DebugLog


class RewardInputs(NamedTuple):
    """B rows of the data with further columns, B prompts and B completions, as TRL hands them to reward functions."""

    rows: Sequence[Row]
    prompts: list[Any]
    completions: list[Any]


class RewardScorer:
    """Prepares the arguments of reward functions, and weighs what they return.

    Args:
        encoder: encoded the prompts.
        answer_space: in which coordinates the model answers.
        names: of the rewards.
        weights: (F,) of them.
        ranks: collectives of the run.
        log: takes each completion and reward, in debug mode.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        answer_space: str | None,
        names: Sequence[str],
        weights: Tensor,
        ranks: Ranks,
        log: DebugLog | None,
    ) -> None:
        self.encoder, self.answer_space, self.names = encoder, answer_space, list(names)
        self.weights, self.ranks, self.log = weights, ranks, log

    def inputs(self, rollout: Rollout, sampled: RewardInputs) -> RewardInputs:
        """Return the rows with decoded images, facts and turns, and prompts and completions with their images."""
        facts = {
            id(prompt): {"images": prompt.images, **self.encoder.image_facts(prompt), "answer_space": self.answer_space}
            for prompt in unique_prompts(rollout.prompts)
        }
        pairs = zip(sampled.rows, rollout.prompts, strict=True)
        rows = add_turns([{**row, **facts[id(prompt)]} for row, prompt in pairs], rollout.openings, rollout.turns)
        for row, trajectory in zip(rows, rollout.trajectories, strict=False):
            row["environments"] = trajectory.environment
        completions = [each.completion(with_images=True) for each in rollout.trajectories] or sampled.completions
        return RewardInputs(rows, sampled.prompts, completions)

    def greedy_inputs(
        self, sampled: RewardInputs, rows: Sequence[int], prompts: Sequence[EncodedPrompt], ids: Sequence[list[int]]
    ) -> RewardInputs:
        """Return what rewards get for the greedy completions of some rows, from what they got for the sampled ones."""
        texts = self.encoder.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        openings = [prompt.opening for prompt in prompts]
        turns = whole_turns(prompts, ids, self.encoder.decode)
        return RewardInputs(
            add_turns([sampled.rows[row] for row in rows], openings, turns),
            [sampled.prompts[row] for row in rows],
            [[{"role": "assistant", "content": text}] for text in texts],
        )

    def total(self, rewards: Tensor) -> Tensor:
        """Return (B,) weighted sums of (B, F) rewards; NaN where none applied."""
        return weighted_sum(rewards, self.weights)

    def write(self, step: int, rollout: Rollout, rows: Sequence[Row], rewards: Tensor) -> None:
        """Write this process's completions and (all B, F) rewards into the log, in debug mode."""
        if self.log is None:
            return
        mine = self.ranks.local_rows(rewards, len(rows)).T.tolist()
        logged_rows = [{**row, "images": prompt.refs} for row, prompt in zip(rows, rollout.scored_prompts, strict=True)]
        self.log.write(step, logged_rows, rollout.turns, dict(zip(self.names, mine, strict=True)))
