"""What reward functions are given of a rollout, and one number of what they return. TRL calls the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm_grpo.rollouts.current import CurrentRollout
from vlm_grpo.rollouts.decoding import add_turns, text_turns, whole_turn
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder, unique_prompts
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.completion_log import DebugLog


class RewardInputs(NamedTuple):
    """B rows of the data with further columns, B prompts and B completions, as TRL hands them to reward functions."""

    rows: list[dict[str, Any]]
    prompts: list[Any]
    completions: list[Any]


class RewardScorer:
    """Prepares what rewards are given, and weighs what they return.

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

    def inputs_of_text(self, current: CurrentRollout, given: RewardInputs, ids: Sequence[list[int]]) -> RewardInputs:
        """Return the rows with the assistant's turns, for a model without images."""
        openings, current.turns = text_turns(self.encoder.template, self.encoder.decode, given.prompts, ids)
        return given._replace(rows=add_turns(given.rows, openings, current.turns))

    def inputs_of(self, current: CurrentRollout, given: RewardInputs, ids: Sequence[list[int]]) -> RewardInputs:
        """Return the rows with decoded images, facts and turns, and prompts and completions with their images."""
        current.turns = [each.messages_without_images for each in current.trajectories] or self.whole_turns(
            current.prompts, ids
        )
        facts = {
            id(prompt): {
                "images": prompt.images,
                **self.encoder.image_facts(prompt),
                "answer_space": self.answer_space,
            }
            for prompt in unique_prompts(current.initial_prompts)
        }
        rows = [{**row, **facts[id(prompt)]} for row, prompt in zip(given.rows, current.initial_prompts, strict=True)]
        rows = add_turns(rows, current.openings, current.turns)
        for row, trajectory in zip(rows, current.trajectories, strict=False):
            row["environments"] = trajectory.environment
        completions = [each.completion(with_images=True) for each in current.trajectories] or given.completions
        return RewardInputs(rows, [prompt.prompt_for_rewards() for prompt in current.initial_prompts], completions)

    def inputs_of_rows(
        self, given: RewardInputs, rows: Sequence[int], prompts: Sequence[EncodedPrompt], ids: Sequence[list[int]]
    ) -> RewardInputs:
        """Return what rewards are given of other completions of some rows: of the greedy ones."""
        texts = self.encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        openings = [prompt.opening for prompt in prompts]
        return RewardInputs(
            add_turns([given.rows[row] for row in rows], openings, self.whole_turns(prompts, ids)),
            [given.prompts[row] for row in rows],
            [[{"role": "assistant", "content": text}] for text in texts],
        )

    def whole_turns(self, prompts: Sequence[EncodedPrompt], ids: Sequence[list[int]]) -> list[Any]:
        """Return the assistant's turn of each completion, with what its prompt began."""
        return [
            whole_turn(prompt.opening, self.encoder.decode(tokens), prompt.messages)
            for prompt, tokens in zip(prompts, ids, strict=True)
        ]

    def total(self, rewards: Tensor) -> Tensor:
        """Return (B,) weighted sums of (B, F) rewards; NaN where none applied."""
        total = (rewards * self.weights.to(rewards.device)).nansum(dim=1)
        return total.masked_fill(rewards.isnan().all(dim=1), torch.nan)

    def write(self, step: int, current: CurrentRollout, rows: Sequence[dict[str, Any]]) -> None:
        """Write this process's completions and rewards into the log, in debug mode."""
        if self.log is None:
            return
        mine = self.ranks.local_rows(current.rewards, len(rows)).T.tolist()
        logged_rows = [{**row, "images": prompt.refs} for row, prompt in zip(rows, current.prompts, strict=True)]
        self.log.write(step, logged_rows, current.turns, dict(zip(self.names, mine, strict=True)))
