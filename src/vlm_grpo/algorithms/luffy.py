"""LUFFY (arXiv:2504.14945) and SRFT (arXiv:2506.19767): some completions of each prompt are demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import AlgorithmConfig, AlgorithmOptions, Rows, RunContext, ScoredRollout
from vlm_grpo.algorithms.group import nanstd
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


def shaped(logps: Tensor, gamma: float) -> Tensor:
    """Return p / (p + gamma): unlike p, it has a gradient for tokens that the policy considers unlikely."""
    probabilities = logps.exp()
    return probabilities / (probabilities + gamma)


def luffy_loss(inputs: LossInputs, *, luffy_gamma: float = 0.1) -> Tensor:
    """Return -A w without clipping, and -A p / (p + gamma) for tokens of demonstrations (arXiv:2504.14945)."""
    weight = torch.where(expert_rows(inputs), shaped(inputs.logps, luffy_gamma), sampled_ratio(inputs))
    return -inputs.advantages * weight


def srft_weights(entropy: Tensor, sft: float = 0.5, rl: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return 0.5 exp(-H) for demonstrations and 0.1 exp(H) for correct completions, without gradient."""
    return sft * (-entropy.detach()).exp(), rl * entropy.detach().exp()


def srft_loss(inputs: LossInputs, *, srft_sft: float = 0.5, srft_rl: float = 0.1, luffy_gamma: float = 0.1) -> Tensor:
    """Return SFT plus LUFFY's loss for demonstrations, -w log p for correct completions, +log p for incorrect ones.

    H is the mean entropy of the tokens of a completion (arXiv:2506.19767).
    """
    count = inputs.mask.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = (required(inputs.entropies, "the entropy of tokens").detach() * inputs.mask).sum(
        dim=1, keepdim=True
    ) / count  # (B, 1)
    sft, rl = srft_weights(entropy, srft_sft, srft_rl)
    correct = torch.zeros_like(entropy) if inputs.is_correct is None else inputs.is_correct
    expert = -sft * inputs.logps - inputs.advantages * shaped(inputs.logps, luffy_gamma)
    sampled = torch.where(correct > 0, -rl * inputs.logps, (correct < 0) * inputs.logps)
    return torch.where(expert_rows(inputs), expert, sampled)


@dataclass(frozen=True)
class LUFFYOptions(AlgorithmOptions):
    """`expert_rows` of the completions of a prompt are demonstrations."""

    expert_rows: int = 1

    def validate(self, num_generations: int) -> str | None:
        most = num_generations - 1
        return None if 1 <= self.expert_rows <= most else f"expert_rows must be 1 to {most}, of {num_generations}"


@dataclass(frozen=True)
class SRFTOptions(CorrectnessOptions, LUFFYOptions):
    """Those of LUFFY, and which completions are correct."""


class LUFFY(DemonstrationAlgorithm):
    """The last completions of each group are demonstrations, rewarded and compared like the sampled ones."""

    Options = LUFFYOptions
    options: LUFFYOptions
    option_functions = (luffy_loss,)

    def demonstrations(self, rows: Rows, step: int) -> dict[int, list[int]]:
        """Return the tokens of the last rows of each group, by row of this process; rows have 0, 1 or more of them."""
        tokens: dict[int, list[int]] = {}
        for row, record in enumerate(rows):
            group, index = self.group_of(len(rows), row)
            answers = expert_answers(record)
            number = index - (self.args.num_generations - min(self.options.expert_rows, len(answers)))
            if number >= 0:
                order = self.random_of(group, step).permutation(len(answers))
                tokens[row] = self.encode.checked(answers[order[number]])
        return tokens

    def finish(self, rollout: ScoredRollout) -> None:
        """Record which completions are demonstrations, and leave them out of the logged rewards."""
        is_expert = torch.zeros(len(rollout.batch), 1, dtype=torch.bool)
        is_expert[list(rollout.demonstrations)] = True
        rollout.batch.is_expert = is_expert.to(rollout.rewards.device)
        self._correct_rewards(self.ranks.gather(rollout.batch.is_expert)[:, 0], rollout)

    def _correct_rewards(self, is_expert: Tensor, rollout: ScoredRollout) -> None:
        """Replace the last reward statistics by those of sampled completions; log those of demonstrations."""
        metrics, totals = rollout.metrics, rollout.totals
        metrics["expert/share"].append(is_expert.float().mean().item())
        if not is_expert.any():
            return
        rewards = rollout.rewards.masked_fill(is_expert[:, None], torch.nan)
        metrics["expert/reward"].append(totals[is_expert].nanmean().item())
        names = [f"rewards/{name}/" for name in self.run.reward_names]
        for mean, deviation, values in [
            *((f"{name}mean", f"{name}std", rewards[:, n]) for n, name in enumerate(names)),
            ("reward", "reward_std", totals.masked_fill(is_expert, torch.nan)),
        ]:
            metrics[mean][-1] = values.nanmean().item()
            metrics[deviation][-1] = nanstd(values[None]).item()

    def token_loss(self, inputs: LossInputs) -> Tensor:
        return self.call(luffy_loss, inputs)


class SRFT(LUFFY):
    """SFT and RL at once, weighted by the entropy of the policy."""

    Options = SRFTOptions
    options: SRFTOptions
    option_functions = (srft_loss,)
    skips_zero_advantage = False  # the loss of sampled completions depends on whether they are correct

    def __init__(self, name: str, config: AlgorithmConfig, run: RunContext) -> None:
        super().__init__(name, config, run)
        self.correctness = Correctness(self.options, run.reward_names)

    def finish(self, rollout: ScoredRollout) -> None:
        """Record also which completions are correct."""
        super().finish(rollout)
        correct = self.correctness.of(rollout.rewards)
        rollout.batch.is_correct = self.ranks.local_rows(correct, len(rollout.batch))[:, None]

    def token_loss(self, inputs: LossInputs) -> Tensor:
        return self.call(srft_loss, inputs)
