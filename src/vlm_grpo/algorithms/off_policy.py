"""What algorithms with demonstrations share: random choices, correct completions, ratios, and scores of given tokens.

What each of them does with demonstrations is in luffy.py, hpt.py, chord.py and uft.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import Algorithm, AlgorithmConfig, AlgorithmOptions, RunContext, Score
from vlm_grpo.algorithms.demonstration_encoder import demonstration_encoder
from vlm_grpo.algorithms.losses import LossInputs

if TYPE_CHECKING:
    from vlm_grpo.rollouts.encoder import EncodedPrompt


class DemonstrationAlgorithm(Algorithm):
    """An algorithm that also learns from demonstrations: completions that an expert wrote."""

    needs_demonstrations = True

    def __init__(self, name: str, config: AlgorithmConfig, run: RunContext) -> None:
        super().__init__(name, config, run)
        encoder, limit = run.encoder, run.args.max_completion_length
        self.encode = demonstration_encoder(encoder.base_processor, run.eos_token_ids, limit, encoder.template_options)

    @classmethod
    def validate(cls, name: str, config: AlgorithmConfig, args: Any) -> None:
        """Check the training arguments."""
        super().validate(name, config, args)
        if getattr(args, "dynamic_sampling", 0):
            raise ValueError(
                f"--dynamic_sampling does not go with --algorithm {name}: demonstrations give its signal; leave it out"
            )
        if args.kl_reward_coef:
            raise ValueError(
                f"--kl_reward_coef does not go with --algorithm {name}: demonstrations, which the policy did not "
                "sample, have no KL; use --beta, the KL in the loss"
            )

    def group_of(self, count: int, row: int) -> tuple[int, int]:
        """Return the group of one of `count` local rows among those of all processes, and its index in the group."""
        return divmod(self.ranks.index * count + row, self.args.num_generations)

    def random_of(self, group: int, step: int) -> np.random.Generator:
        """Return random numbers for a group and step: equal on all processes, and after a resume."""
        return np.random.default_rng([self.args.seed, step, group])

    def logprobs_of(
        self, score: Score, prompts: Sequence[EncodedPrompt], tokens: Sequence[list[int]], anywhere: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """Return the (N, C) log-probabilities of given completions, with gradient, and their mask."""
        ids, mask, width = padded_rows(prompts, tokens, self.run.pad_token_id)
        device = self.ranks.device
        return score(prompts, anywhere, ids.to(device), mask.to(device), width), mask[:, -width:].to(device)

    def mean_over_ranks(self, loss: Tensor) -> float:
        """Return the mean of a loss over all processes, for logs."""
        return self.ranks.accelerator.reduce(loss.detach(), reduction="mean").item()


@dataclass(frozen=True)
class CorrectnessOptions(AlgorithmOptions):
    """A completion is correct if `correct_reward` (None: the first that is not `format`) is above `correct_above`."""

    correct_reward: str | None = None
    correct_above: float = 0.5


class Correctness:
    """Tells correct completions by a reward.

    Args:
        options: which reward, and its threshold.
        reward_names: of the run.

    Raises:
        ValueError: the run has no reward of that name.
    """

    def __init__(self, options: Any, reward_names: Sequence[str]) -> None:
        name, self.threshold = options.correct_reward, options.correct_above
        if name is not None and name not in reward_names:
            known = ", ".join(reward_names)
            raise ValueError(f"--algorithm_options: correct_reward must be one of {known}, got {name!r}")
        others = [each for each in reward_names if each != "format"] or list(reward_names)
        self.index = list(reward_names).index(name or others[0])

    def of(self, rewards: Tensor) -> Tensor:
        """Return (all B,): 1 for a correct completion, -1 for an incorrect one, 0 if the reward did not apply."""
        values = rewards[:, self.index]
        return torch.where(values > self.threshold, 1.0, -1.0).masked_fill(values.isnan(), 0.0)


def expert_rows(inputs: LossInputs) -> Tensor:
    """Return (B, 1) of bool, which completions are demonstrations; none in an evaluation."""
    return torch.zeros_like(inputs.mask[:, :1], dtype=torch.bool) if inputs.is_expert is None else inputs.is_expert


def sampled_ratio(inputs: LossInputs) -> Tensor:
    """Return (B, C) new over old probabilities; 1 for demonstrations, which no policy sampled."""
    return (inputs.logps - torch.where(expert_rows(inputs), inputs.logps.detach(), inputs.old_logps)).exp()


def cosine(progress: float, high: float, low: float) -> float:
    """Return a value that falls from `high` to `low` in half a cosine period while `progress` goes from 0 to 1."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(progress, 1.0)))


def padded_rows(prompts: Sequence[EncodedPrompt], tokens: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor, int]:
    """Return (N, P + C) tokens and mask of prompts, padded on the left, and completions, padded on the right; and C."""
    longest, width = max(len(prompt.input_ids) for prompt in prompts), max(map(len, tokens))
    ids = torch.full((len(prompts), longest + width), pad)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, tokens, strict=True)):
        start, end = longest - len(prompt.input_ids), longest + len(completion)
        ids[row, start:end] = torch.tensor([*prompt.input_ids, *completion])
        mask[row, start:end] = 1
    return ids, mask, width
