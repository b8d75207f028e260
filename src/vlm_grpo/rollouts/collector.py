"""From data rows to completions: prompts are encoded, and an engine or the environments complete them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from vlm_grpo.records import Row
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.decoding import completion_messages, warn_about_tags
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.engine import Generation, RolloutEngine
from vlm_grpo.rollouts.env_pool import EnvPool
from vlm_grpo.rollouts.multi_turn import EpisodeLimits, MultiTurnRollout, next_prompt
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.rollouts.rollout import Rollout
from vlm_grpo.rollouts.trajectory import Trajectory


class RolloutCollector:
    """Samples the completions of data rows.

    Args:
        encoder: encodes prompts.
        engine: completes them.
        env_pool: the environments; None without tools.
        multi_turn: runs them; None without tools.
        limits: of an episode.
        ranks: collectives of the run.
        pad_token_id: pads prompts and completions.
        pad_to_multiple_of: their lengths are a multiple of it.
        masks_truncated: whether truncated completions are left out of attention and loss.
        facts: what environments are told of every row.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        engine: RolloutEngine,
        env_pool: EnvPool | None,
        multi_turn: MultiTurnRollout | None,
        limits: EpisodeLimits,
        ranks: Ranks,
        *,
        pad_token_id: int,
        pad_to_multiple_of: int | None,
        masks_truncated: bool,
        facts: Mapping[str, object],
    ) -> None:
        self.encoder, self.engine, self.env_pool, self.multi_turn = encoder, engine, env_pool, multi_turn
        self.limits, self.ranks, self.facts = limits, ranks, facts
        self.pad_token_id, self.pad_to_multiple_of = pad_token_id, pad_to_multiple_of
        self.masks_truncated = masks_truncated
        self._has_warned_about_tags = False

    def collect(self, rows: Sequence[Row], demonstrations: Mapping[int, list[int]]) -> Rollout:
        """Return the rollout of rows.

        Args:
            rows: of the data, one for each completion.
            demonstrations: tokens of completions that take the place of sampled ones, by row.
        """
        trajectories: list[Trajectory] = []
        if self.env_pool is not None:
            trajectories, rows = self.env_pool.start(rows)
        prompts = self.encoder.encode(rows)
        if not self._has_warned_about_tags:
            self._has_warned_about_tags = warn_about_tags(prompts[0].opening, prompts[0].messages)
        rollout = Rollout(list(rows), prompts, trajectories, dict(demonstrations))
        if self.multi_turn is not None:
            self._run_environments(self.multi_turn, rollout)
        else:
            self._complete(rollout)
        rollout.add_turns(self.encoder.decode)
        return rollout

    def _run_environments(self, multi_turn: MultiTurnRollout, rollout: Rollout) -> None:
        """Complete the prompts turn by turn."""
        generate = partial(self._next_turns, rollout.prompts[0])
        episodes = (rollout.trajectories, rollout.prompts, self.facts, self.limits)
        multi_turn.run(*episodes, generate, self.ranks.any)
        multi_turn.drop_broken(rollout.trajectories)
        rollout.ids = [trajectory.segment.ids for trajectory in rollout.trajectories]
        if any(trajectory.logprobs for trajectory in rollout.trajectories):
            rollout.logprobs = [trajectory.logprobs for trajectory in rollout.trajectories]

    def _next_turns(self, spare: EncodedPrompt, trajectories: Sequence[Trajectory], room: int) -> Generation:
        """Return one more turn of each; without any the spare prompt is continued, for other processes to go on."""
        prompts = [next_prompt(each) for each in trajectories] or [spare]
        turns, count = self.engine.generate(prompts, max_new_tokens=room), len(trajectories)
        return Generation(turns.ids[:count], None if turns.logprobs is None else turns.logprobs[:count])

    def _complete(self, rollout: Rollout) -> None:
        """Complete the prompts, but those whose completions are demonstrations."""
        count, known = len(rollout.prompts), rollout.demonstrations
        left_out = () if self.engine.needs_whole_groups else known
        # One is sampled in any case: other processes may wait for this one's part of the model.
        rows = [row for row in range(count) if row not in left_out] or [0]
        generation = self.engine.generate([rollout.prompts[row] for row in rows])
        ids = dict(zip(rows, generation.ids, strict=True))
        rollout.ids = [known[row] if row in known else ids[row] for row in range(count)]
        if generation.logprobs is not None:  # a token without one is left out of the sampler's correction
            logps = dict(zip(rows, generation.logprobs, strict=True))
            rollout.logprobs = [[None] * len(known[row]) if row in known else logps[row] for row in range(count)]
        if generation.finish_reasons is not None:
            reasons = dict(zip(rows, generation.finish_reasons, strict=True))
            rollout.finish_reasons = ["stop" if row in known else reasons[row] for row in range(count)]

    def messages(self, rollout: Rollout, *, parses_responses: bool) -> list[Any]:
        """Return completions as messages, or as text where their prompts are text.

        Args:
            rollout: with its completions.
            parses_responses: as `completion_messages` takes it.
        """
        if rollout.trajectories:
            return [each.completion() for each in rollout.trajectories]
        tokenizer = self.encoder.tokenizer
        return completion_messages(tokenizer, rollout.prompts, rollout.ids, parses_responses=parses_responses)

    def to_batch(self, rollout: Rollout) -> RolloutBatch:
        """Return the tensors of a rollout; every process takes part."""
        batch = RolloutBatch.collate(
            rollout.scored_prompts,
            rollout.ids,
            pad_token_id=self.pad_token_id,
            device=self.ranks.device,
            masks=[each.tool_mask for each in rollout.trajectories] or None,
            logprobs=rollout.logprobs,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if self.masks_truncated:
            batch.mask_rows(torch.tensor(self.is_truncated(rollout), device=self.ranks.device))
        batch.num_items_in_batch = self.ranks.gather(batch.loss_mask.sum()).sum()
        batch.media_anywhere = self.ranks.any_media({kind for prompt in batch.prompts or () for kind in prompt.media})
        return batch

    def is_truncated(self, rollout: Rollout) -> list[bool]:
        """Return for each completion whether the limit on its length ended it, and not a stop token or text."""
        if rollout.finish_reasons is not None:
            return [reason == "length" for reason in rollout.finish_reasons]
        ends = {*self.limits.stop_token_ids, self.pad_token_id}
        return [ids[-1] not in ends for ids in rollout.ids]

    def release(self, rollout: Rollout) -> None:
        """Let the environments of a rollout be used again."""
        if self.env_pool is not None:
            self.env_pool.release(rollout.trajectories)
