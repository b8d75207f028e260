"""An expert's answers in a rollout: beside sampled completions, in their place, or as the beginning of them.

What the losses make of them is in `algorithms/expert.py`; imitation beside a rollout is in `imitation.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_grpo.algorithms import find_algorithm
from vlm_grpo.algorithms.advantages import nanstd
from vlm_grpo.algorithms.expert import (
    CHORD,
    HPT,
    SRFT,
    UFT,
    MixedRollout,
    OffPolicyConfig,
    build_config,
    needs_sft,
    segments,
)
from vlm_grpo.data.demonstrations import expert_answers
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.prompt_lengths import correct_lengths
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.demonstration_encoder import DemonstrationEncoder, check_answers

Rows = Sequence[Mapping[str, Any]]
Metrics = dict[str, list[float]]
PER_TOKEN = (
    *("completion_ids", "completion_mask", "old_logps", "ref_logps"),
    *("sampling_logps", "importance_sampling_ratio"),  # of vLLM
)


class OffPolicyRollout:
    """What an algorithm does with demonstrations in a rollout: hints, completions mixed in, completions replaced.

    Args:
        config: of the algorithm.
        encode: from a demonstration to its tokens.
        rewards: names of the rewards of the run; the one that `correct_reward` names says what is right.
        args: of the training.
        pad_token_id: pads completions.
        ends: tokens after which a completion was not cut off.
        ranks: collectives of the run.

    Raises:
        ValueError: no reward of that name is among those of this run.
    """

    def __init__(
        self,
        config: OffPolicyConfig,
        encode: DemonstrationEncoder,
        rewards: Sequence[str],
        args: Any,
        pad_token_id: int,
        ends: Collection[int],
        ranks: Ranks,
    ) -> None:
        self.config, self.encode, self.rewards, self.args = config, encode, list(rewards), args
        self.pad_token_id, self.ends, self.ranks = pad_token_id, {*ends, pad_token_id}, ranks
        wanted = getattr(config, "correct_reward", None)
        if wanted is not None and wanted not in self.rewards:
            known = ", ".join(self.rewards)
            raise ValueError(f"--algorithm_options: correct_reward must be one of {known}, got {wanted!r}")
        others = [name for name in self.rewards if name != "format"] or self.rewards
        self.judge = self.rewards.index(wanted or others[0])

    def place(self, count: int, row: int) -> tuple[int, int]:
        """Return the group of one of `count` local rows among those of all processes, and its number in the group."""
        return divmod(self.ranks.index * count + row, self.args.num_generations)

    def draw(self, group: int, step: int) -> np.random.Generator:
        """Return random numbers of a group in a rollout: the same on every process, and again after a resume."""
        return np.random.default_rng([self.args.seed, step, group])

    def demonstrations(self, rows: Rows, step: int) -> dict[int, list[int]]:
        """Return the tokens of the last rows of each group that are demonstrations, by row of this process."""
        found: dict[int, list[int]] = {}
        for row, record in enumerate(rows if isinstance(self.config, MixedRollout) else []):
            group, turn = self.place(len(rows), row)
            answers = expert_answers(record)
            number = turn - (self.args.num_generations - min(self.config.expert_rows, len(answers)))
            if number >= 0:
                order = self.draw(group, step).permutation(len(answers))
                found[row] = self.encode.checked(answers[order[number]])
        return found

    def hints(self, rows: Rows, step: int) -> list[str]:
        """Return the beginning of each row's answer, equal within a group; no list at all without hints."""
        if not isinstance(self.config, UFT):
            return []
        chance = self.config.probability(step)
        return [self._hint(record, self.place(len(rows), row)[0], step, chance) for row, record in enumerate(rows)]

    def _hint(self, record: Mapping[str, Any], group: int, step: int, chance: float) -> str:
        answers, draw = expert_answers(record), self.draw(group, step)
        if not answers:
            return ""
        answer = answers[draw.integers(len(answers))]
        self.encode.checked(answer)
        parts = segments(answer.text, self.config.hint_segments)
        return "".join(parts[: draw.binomial(len(parts), chance)]).rstrip(" ")  # a space belongs to the next word

    def finish(
        self,
        rows: Rows,
        batch: RolloutBatch,
        demonstrations: Mapping[int, list[int]],
        rewards: Tensor,
        totals: Tensor,
        step: int,
        metrics: Metrics,
    ) -> None:
        """Tell the loss which rows are demonstrations, or replace completions by them, and correct what is logged.

        Args:
            rows: of the data, this process's.
            batch: the rollout; changed.
            demonstrations: as `demonstrations` gave them.
            rewards: (all B, F).
            totals: (all B,) weighted sums of them.
            step: the optimizer step.
            metrics: of training; changed.
        """
        if isinstance(self.config, MixedRollout):
            self._mark(batch, demonstrations, rewards, totals, metrics)
        elif isinstance(self.config, HPT):
            self._replace(rows, batch, rewards, step, metrics)
        elif isinstance(self.config, UFT):
            metrics["expert/hint_probability"].append(self.config.probability(step))
            count = torch.tensor(sum(s.answer_prefix_length for s in batch.prompts), device=rewards.device)
            batch.num_hint_tokens = self.ranks.gather(count).sum()

    def correct_lengths(
        self, completion_ids: Sequence[list[int]], demonstrations: Mapping[int, list[int]], metrics: Metrics
    ) -> None:
        """Let the statistics of lengths be those of what was sampled."""
        if not isinstance(self.config, MixedRollout):
            return
        facts = [[len(ids), ids[-1] not in self.ends, row in demonstrations] for row, ids in enumerate(completion_ids)]
        table = self.ranks.gather(torch.tensor(facts, device=self.ranks.accelerator.device, dtype=torch.float))
        sampled = table[table[:, 2] == 0]
        if 0 < len(sampled) < len(table):
            correct_lengths(metrics, sampled[:, 0], sampled[:, 1] > 0)

    def _mark(
        self,
        batch: RolloutBatch,
        demonstrations: Mapping[int, Any],
        rewards: Tensor,
        totals: Tensor,
        metrics: Metrics,
    ) -> None:
        marks = torch.zeros(len(batch), 1, dtype=torch.bool)
        marks[list(demonstrations)] = True
        batch.is_expert = marks.to(rewards.device)
        if isinstance(self.config, SRFT):
            batch.is_correct = self.ranks.local_rows(self._verdicts(rewards), len(marks))[:, None]
        self._correct_rewards(self.ranks.gather(batch.is_expert)[:, 0], rewards, totals, metrics)

    def _verdicts(self, rewards: Tensor) -> Tensor:
        """Return (all B,): 1 for a right answer, -1 for a wrong one, 0 where the reward that decides does not apply."""
        values = rewards[:, self.judge]
        return torch.where(values > self.config.correct_above, 1.0, -1.0).masked_fill(values.isnan(), 0.0)

    def _correct_rewards(self, expert: Tensor, rewards: Tensor, totals: Tensor, metrics: Metrics) -> None:
        """Let the logged rewards be those of what was sampled, and log the demonstrations' beside them."""
        metrics["expert/share"].append(expert.float().mean().item())
        if not expert.any():
            return
        own = rewards.masked_fill(expert[:, None], torch.nan)
        sampled = totals.masked_fill(expert, torch.nan)
        metrics["expert/reward"].append(totals[expert].nanmean().item())
        names = [f"rewards/{name}/" for name in self.rewards]
        for mean, deviation, values in [
            *((f"{name}mean", f"{name}std", own[:, n]) for n, name in enumerate(names)),
            ("reward", "reward_std", sampled),
        ]:
            metrics[mean][-1] = values.nanmean().item()
            metrics[deviation][-1] = nanstd(values[None]).item()

    def _replace(self, rows: Rows, batch: RolloutBatch, rewards: Tensor, step: int, metrics: Metrics) -> None:
        """Put a demonstration in place of all completions of a prompt that has too few right ones."""
        size = self.args.num_generations
        chosen = needs_sft(self._verdicts(rewards).view(-1, size) > 0, self.config.rescue_at).tolist()
        replaced: dict[int, list[int]] = {}
        left_out: list[int] = []
        for row, record in enumerate(rows):
            group, turn = self.place(len(rows), row)
            answers = expert_answers(record) if chosen[group] else []
            if answers and turn == size - 1:
                replaced[row] = self.encode.checked(answers[self.draw(group, step).integers(len(answers))])
            elif answers:
                left_out.append(row)
        replace_completions(batch, replaced, left_out, self.pad_token_id)
        # A mean over rows gives a prompt the weight of all its rows, of which one is left.
        weight = 1.0 if self.args.loss_type == "dapo" else float(size)
        batch.loss_weight = torch.full_like(batch.is_expert, 1, dtype=torch.float) * weight
        batch.num_items_in_batch = self.ranks.gather(batch.completion_mask.sum()).sum()
        count = torch.tensor([len(replaced)], device=rewards.device)
        share = self.ranks.gather(count).sum().item() / len(chosen)
        metrics["expert/share_of_prompts"].append(share)


def build_off_policy_config(args: Any, dataset: Any, demonstrations: Any, model: Any, processor: Any) -> Any:
    """Return the configuration of an algorithm that learns from demonstrations, whose rows are looked at; else None.

    Args:
        args: of the training; None has no algorithm.
        dataset: of the training.
        demonstrations: rows with questions of their own, of CHORD alone.
        model: as the trainer was given it.
        processor: likewise.

    Raises:
        ValueError: demonstrations that the algorithm does not take.
        DataError: a demonstration is wrong or too long, or there is none.
    """
    name = getattr(args, "algorithm", None)
    known = find_algorithm(name).expert if name else None
    config = None
    if known is not None:
        config = build_config(name, known, args.algorithm_options or {}, args.num_generations)
        check_answers(name, dataset if demonstrations is None else demonstrations, model, processor, args)
    if demonstrations is not None and not isinstance(config, CHORD):
        raise ValueError("demonstrations, rows with questions of their own, go with --algorithm chord alone")
    return config


def with_hints(prompts: Sequence[Any], completions: Sequence[Any], hints: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Return prompts without hints and completions with them: rewards are of whole answers."""
    if not hints:
        return list(prompts), list(completions)
    bare = [prompt[:-1] if hint else prompt for prompt, hint in zip(prompts, hints, strict=True)]
    whole = [
        [{**completion[0], "content": hint + completion[0]["content"]}, *completion[1:]]
        for completion, hint in zip(completions, hints, strict=True)
    ]
    return bare, whole


def with_demonstrations(
    ids: Sequence[list[int]], logps: Sequence[list[Any]] | None, demonstrations: Mapping[int, list[int]]
) -> tuple[list[list[int]], list[list[Any]] | None]:
    """Return completions with demonstrations in place of some rows.

    None in place of a log-probability is TRL's way to leave a token out of the sampler's correction.
    """
    found = [demonstrations.get(row, sampled) for row, sampled in enumerate(ids)]
    if logps is not None:
        logps = [[None] * len(found[row]) if row in demonstrations else known for row, known in enumerate(logps)]
    return found, logps


def replace_completions(
    batch: RolloutBatch, replaced: Mapping[int, list[int]], left_out: Sequence[int], pad: int
) -> None:
    """Change a rollout: rows get demonstrations' tokens and the advantage 1, others no token that counts, and none.

    Their log-probabilities under older policies, which nobody has, are 0, and weights of the sampler 1.
    """
    ids, rows = batch.completion_ids, list(replaced)
    width = max([ids.size(1), *map(len, replaced.values())])
    for name in PER_TOKEN:
        value = getattr(batch, name)
        if value is None:
            continue
        if value.size(1) == ids.size(1):
            fill = pad if name == "completion_ids" else 0
            value = torch.nn.functional.pad(value, (0, width - ids.size(1)), value=fill)
        value[rows] = 1 if name == "importance_sampling_ratio" else 0
        setattr(batch, name, value)
    for row, tokens in replaced.items():
        batch.completion_ids[row] = pad
        batch.completion_ids[row, : len(tokens)] = torch.tensor(tokens, device=ids.device)
        batch.completion_mask[row, : len(tokens)] = 1
    batch.completion_mask[list(left_out)] = 0
    batch.advantages = batch.advantages.clone()
    batch.advantages[list(left_out)] = 0.0
    batch.advantages[rows] = 1.0
    batch.is_expert = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    batch.is_expert[rows] = True


def with_hint(row: dict[str, Any], hint: str) -> dict[str, Any]:
    """The row with the hint as the beginning of the assistant's turn.

    Raises:
        ValueError: its prompt is plain text, which has no turns.
    """
    if not hint:
        return row
    prompt = row["prompt"]
    if isinstance(prompt, str):
        raise ValueError(f"{row.get('where') or 'a row'}: hints need a prompt of chat messages, got plain text")
    is_text = isinstance(prompt[-1]["content"], str)
    return {
        **row,
        "prompt": [
            *prompt,
            {"role": "assistant", "content": hint if is_text else [{"type": "text", "text": hint}]},
        ],
    }
