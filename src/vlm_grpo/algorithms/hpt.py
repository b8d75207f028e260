"""HPT (arXiv:2509.04419): a prompt whose completions are incorrect is trained by SFT on a demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import AlgorithmConfig, RunContext, ScoredRollout
from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.algorithms.off_policy import (
    Correctness,
    CorrectnessOptions,
    DemonstrationAlgorithm,
    expert_rows,
    sampled_ratio,
)
from vlm_grpo.data.demonstrations import expert_answers
from vlm_grpo.records import required

if TYPE_CHECKING:
    from vlm_grpo.rollouts.batch import RolloutBatch

PER_TOKEN = (
    *("completion_ids", "completion_mask", "old_logps", "ref_logps"),
    *("sampling_logps", "importance_sampling_ratio"),  # of vLLM
)


def needs_sft(correct: Tensor, threshold: float = 0.0) -> Tensor:
    """Return (P,), which prompts are trained by SFT, from (P, G) correct completions."""
    return correct.float().mean(dim=1) <= threshold


def hpt_loss(inputs: LossInputs, *, hpt_clip: float = 0.2) -> Tensor:
    """Return the clipped surrogate, and -log p times `loss_weight` for demonstrations (arXiv:2509.04419)."""
    ratio = sampled_ratio(inputs)
    clipped = ratio.clamp(1 - hpt_clip, 1 + hpt_clip)
    sampled = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    weight = torch.ones_like(inputs.logps[:, :1]) if inputs.loss_weight is None else inputs.loss_weight
    return torch.where(expert_rows(inputs), -weight * inputs.logps, sampled)


@dataclass(frozen=True)
class HPTOptions(CorrectnessOptions):
    """A prompt is trained by SFT if at most the fraction `hpt_threshold` of its completions is correct."""

    hpt_threshold: float = 0.0

    def validate(self, num_generations: int) -> str | None:
        return None if 0 <= self.hpt_threshold < 1 else "hpt_threshold must be at least 0 and below 1"


class HPT(DemonstrationAlgorithm):
    """One demonstration replaces all completions of a prompt that has too few correct ones."""

    Options = HPTOptions
    options: HPTOptions
    option_functions = (hpt_loss,)

    def __init__(self, name: str, config: AlgorithmConfig, run: RunContext) -> None:
        super().__init__(name, config, run)
        self.correctness = Correctness(self.options, run.reward_names)

    def finish(self, rollout: ScoredRollout) -> None:
        """Replace the completions of prompts with too few correct ones."""
        batch, size = rollout.batch, self.args.num_generations
        correct = self.correctness.of(rollout.rewards).view(-1, size) > 0
        sft = needs_sft(correct, self.options.hpt_threshold).tolist()
        demonstrations: dict[int, list[int]] = {}
        left_out: list[int] = []
        for row, record in enumerate(rollout.rows):
            group, index = self.group_of(len(rollout.rows), row)
            answers = expert_answers(record) if sft[group] else []
            if answers and index == size - 1:
                answer = answers[self.random_of(group, rollout.step).integers(len(answers))]
                demonstrations[row] = self.encode.checked(answer)
            elif answers:
                left_out.append(row)
        replace_completions(batch, demonstrations, left_out, self.run.pad_token_id)
        # A mean over rows gives a prompt the weight of all its rows, of which one is left.
        weight = 1.0 if self.args.loss_type == "dapo" else float(size)
        batch.loss_weight = (
            torch.full_like(required(batch.is_expert, "the mask of demonstrations"), 1, dtype=torch.float) * weight
        )
        batch.num_items_in_batch = self.ranks.gather(batch.completion_mask.sum()).sum()
        count = torch.tensor([len(demonstrations)], device=rollout.rewards.device)
        rollout.metrics["expert/share_of_prompts"].append(self.ranks.gather(count).sum().item() / len(sft))

    def token_loss(self, inputs: LossInputs) -> Tensor:
        return self.call(hpt_loss, inputs)


def replace_completions(
    batch: RolloutBatch, demonstrations: Mapping[int, list[int]], left_out: Sequence[int], pad: int
) -> None:
    """Change a batch: rows get the tokens of demonstrations and the advantage 1, others no token that counts.

    Log-probabilities of demonstrations under older policies are unknown and set to 0, sampler weights to 1.
    """
    ids, rows = batch.completion_ids, list(demonstrations)
    width = max([ids.size(1), *map(len, demonstrations.values())])
    for name in PER_TOKEN:
        value = getattr(batch, name)
        if value is None:
            continue
        if value.size(1) == ids.size(1):
            fill = pad if name == "completion_ids" else 0
            value = torch.nn.functional.pad(value, (0, width - ids.size(1)), value=fill)
        value[rows] = 1 if name == "importance_sampling_ratio" else 0
        setattr(batch, name, value)
    for row, tokens in demonstrations.items():
        batch.completion_ids[row] = pad
        batch.completion_ids[row, : len(tokens)] = torch.tensor(tokens, device=ids.device)
        batch.completion_mask[row, : len(tokens)] = 1
    batch.completion_mask[list(left_out)] = 0
    batch.advantages = batch.advantages.clone()
    batch.advantages[list(left_out)] = 0.0
    batch.advantages[rows] = 1.0
    batch.is_expert = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    batch.is_expert[rows] = True
