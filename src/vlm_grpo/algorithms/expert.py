"""Algorithms that learn from an expert's answers beside their own: what is done with the answers, and the losses.

Nothing here reads data or runs a model; `trainers/off_policy.py` does. The fields of a plan are what
`--algorithm_options` may set.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.algorithms.losses import LossInputs

PIECE = re.compile(r".+?(?:\n+|(?<=[.!?;])\s+|$)", re.DOTALL)  # a line or a sentence, with the space after it
FINAL = re.compile(r"<answer>|\\boxed\{")  # where a solution stops reasoning and gives its answer


@dataclass(frozen=True)
class MixedRollout:
    """`expert_rows` of a prompt's completions are the expert's: LUFFY (arXiv:2504.14945)."""

    expert_rows: int = 1

    def complaint(self, num_generations: int) -> str | None:
        """What is wrong with the options for so many completions of a prompt."""
        most = num_generations - 1
        return None if 1 <= self.expert_rows <= most else f"expert_rows must be 1 to {most}, of {num_generations}"


@dataclass(frozen=True)
class SRFT(MixedRollout):
    """The same, and every completion is judged right or wrong: SRFT (arXiv:2506.19767).

    Right is where `correct_reward` (None: the first that is not `format`) is above `correct_above`.
    """

    correct_reward: str | None = None
    correct_above: float = 0.5


@dataclass(frozen=True)
class HPT:
    """The expert's answer replaces those of a prompt of which at most a share `rescue_at` is right: HPT (2509.04419).

    Right is where `correct_reward` (None: the first that is not `format`) is above `correct_above`.
    """

    correct_reward: str | None = None
    correct_above: float = 0.5
    rescue_at: float = 0.0

    def complaint(self, num_generations: int) -> str | None:
        """What is wrong with the options."""
        return None if 0 <= self.rescue_at < 1 else "rescue_at must be at least 0 and below 1"


@dataclass(frozen=True)
class CHORD:
    """Batches of the expert's answers beside the rollouts, with a weight mu: CHORD (arXiv:2508.11408).

    mu rises linearly over `mu_warmup` steps to `mu_peak` and falls by a cosine over `mu_decay` steps to `mu_valley`.
    `phi` weighs each token by p (1 - p). `expert_batch` rows serve one optimizer step, on all processes together; None
    is a quarter of a step's completions.
    """

    mu_warmup: int = 200
    mu_decay: int = 400
    mu_peak: float = 0.5
    mu_valley: float = 0.02
    phi: bool = False
    expert_batch: int | None = None

    def complaint(self, num_generations: int) -> str | None:
        """What is wrong with the options."""
        if not 0 <= self.mu_valley <= self.mu_peak <= 1:
            return "0 <= mu_valley <= mu_peak <= 1 must hold"
        if min(self.mu_warmup, self.mu_decay) < 0:
            return "mu_warmup and mu_decay must not be negative"
        return "expert_batch must be at least 1" if self.expert_batch is not None and self.expert_batch < 1 else None

    def mu(self, step: int) -> float:
        """The weight at an optimizer step, counted from 0."""
        if step < self.mu_warmup:
            return self.mu_peak * step / self.mu_warmup
        passed = (step - self.mu_warmup) / self.mu_decay if self.mu_decay else 1.0
        return cosine(passed, self.mu_peak, self.mu_valley)


@dataclass(frozen=True)
class UFT:
    """The first k of `hint_segments` parts of an expert's solution begin the completions of a prompt: UFT (2505.16984).

    k is binomial with a probability that falls by a cosine from `hint_high` to `hint_low` over `hint_steps` steps, and
    is 0 afterwards. `hint_coef` weighs the hint's negative log-likelihood.
    """

    hint_segments: int = 5
    hint_high: float = 0.95
    hint_low: float = 0.05
    hint_steps: int = 300
    hint_coef: float = 0.001

    def complaint(self, num_generations: int) -> str | None:
        """What is wrong with the options."""
        if not 0 <= self.hint_low <= self.hint_high <= 1:
            return "0 <= hint_low <= hint_high <= 1 must hold"
        return (
            "hint_segments and hint_steps must be at least 1" if min(self.hint_segments, self.hint_steps) < 1 else None
        )

    def probability(self, step: int) -> float:
        """Of each segment, at an optimizer step counted from 0."""
        return 0.0 if step > self.hint_steps else cosine(step / self.hint_steps, self.hint_high, self.hint_low)


OffPolicyConfig = MixedRollout | HPT | CHORD | UFT


def cosine(passed: float, high: float, low: float) -> float:
    """From `high` to `low` in half a cosine wave, at a share of the way; `low` beyond its end."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(passed, 1.0)))


def build_config(name: str, plan: Any, options: dict[str, Any], num_generations: int) -> OffPolicyConfig:
    """The plan of a recipe with what `--algorithm_options` says.

    Raises:
        ValueError: a value that cannot be.
    """
    known = {field.name: options[field.name] for field in fields(plan) if field.name in options}
    for option, value in known.items():
        default = getattr(type(plan), option)
        is_fine = isinstance(value, _kinds(option, default)) and (isinstance(value, bool) == isinstance(default, bool))
        if not is_fine and not (value is None and default is None):
            raise ValueError(f"--algorithm_options: {option} of --algorithm {name}: got {value!r}, default {default!r}")
    made = type(plan)(**known)
    problem = made.complaint(num_generations)
    if problem is not None:
        raise ValueError(f"--algorithm_options: --algorithm {name}: {problem}, got {known or 'the defaults'}")
    return made


def _kinds(option: str, default: Any) -> Any:
    if default is None:
        return str if option.endswith("_reward") else int
    return (int, float) if isinstance(default, float) else type(default)


def segments(solution: str, count: int) -> list[str]:
    """At most `count` parts of about equal length that make up the solution up to its final answer.

    They end where a line or a sentence ends. The final answer (`<answer>`, `\\boxed{`) is left for the model to give; a
    solution that is nothing else has no part.
    """
    final = FINAL.search(solution)
    pieces = PIECE.findall(solution[: final.start()] if final else solution)
    if not "".join(pieces).strip():
        return []
    number = min(count, len(pieces))
    bounds = [round(part * len(pieces) / number) for part in range(number + 1)]
    return ["".join(pieces[start:end]) for start, end in pairwise(bounds)]


def is_expert(tokens: LossInputs) -> Tensor:
    """(B, 1), which rows are the expert's; none where nothing says so, as in an evaluation."""
    known = tokens.marks.get("is_expert")
    return torch.zeros_like(tokens.mask[:, :1], dtype=torch.bool) if known is None else known


def sampled_ratio(tokens: LossInputs) -> Tensor:
    """(B, C) new over old probabilities; of the expert's tokens, which nobody sampled, 1."""
    return (tokens.logps - torch.where(is_expert(tokens), tokens.logps.detach(), tokens.old)).exp()


def shaped(logps: Tensor, gamma: float) -> Tensor:
    """p / (p + gamma): unlike p, it has a gradient where the policy thinks a token unlikely."""
    chances = logps.exp()
    return chances / (chances + gamma)


def luffy(tokens: LossInputs, *, luffy_gamma: float = 0.1) -> Tensor:
    """-A w without clipping, and -A p / (p + gamma) for the expert's tokens (arXiv:2504.14945)."""
    weight = torch.where(is_expert(tokens), shaped(tokens.logps, luffy_gamma), sampled_ratio(tokens))
    return -tokens.advantages * weight


def srft_weights(entropy: Tensor, sft: float = 0.5, rl: float = 0.1) -> tuple[Tensor, Tensor]:
    """Of the expert's tokens 0.5 exp(-H), of right answers 0.1 exp(H); without gradient."""
    return sft * (-entropy.detach()).exp(), rl * entropy.detach().exp()


def srft(tokens: LossInputs, *, srft_sft: float = 0.5, srft_rl: float = 0.1, luffy_gamma: float = 0.1) -> Tensor:
    """Imitation and LUFFY's loss for the expert's tokens, -w log p for right answers, +log p for wrong (2506.19767).

    H is the mean entropy of a completion's tokens. `verdict` is 1 for a right answer, -1 for a wrong one, 0 for none.
    """
    count = tokens.mask.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = (tokens.entropies.detach() * tokens.mask).sum(dim=1, keepdim=True) / count  # (B, 1)
    imitated, reinforced = srft_weights(entropy, srft_sft, srft_rl)
    verdict = tokens.marks.get("verdict", torch.zeros_like(entropy))
    expert = -imitated * tokens.logps - tokens.advantages * shaped(tokens.logps, luffy_gamma)
    own = torch.where(verdict > 0, -reinforced * tokens.logps, (verdict < 0) * tokens.logps)
    return torch.where(is_expert(tokens), expert, own)


def hpt(tokens: LossInputs, *, hpt_clip: float = 0.2) -> Tensor:
    """The clipped surrogate; of an expert's answer in place of a prompt's, -log p times `weight` (arXiv:2509.04419)."""
    ratio = sampled_ratio(tokens)
    clipped = ratio.clamp(1 - hpt_clip, 1 + hpt_clip)
    own = -torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)
    weight = tokens.marks.get("weight", torch.ones_like(tokens.logps[:, :1]))
    return torch.where(is_expert(tokens), -weight * tokens.logps, own)


def needs_sft(correct: Tensor, rescue_at: float = 0.0) -> Tensor:
    """(P,), for which prompts imitation is chosen over reinforcement, from (P, G) right answers."""
    return correct.float().mean(dim=1) <= rescue_at


def chord_phi(logps: Tensor) -> Tensor:
    """p (1 - p), without gradient: what the policy knows already, and what is far from it, counts little."""
    chances = logps.detach().exp()
    return chances * (1 - chances)


def chord_mix(reinforced: Tensor, imitated: Tensor, mu: float) -> Tensor:
    """(1 - mu) of the one loss and mu of the other."""
    return (1 - mu) * reinforced + mu * imitated


def shard_rows(count: int, slot: int, slots: int) -> list[tuple[int, float]]:
    """Which of a batch's `count` rows one of `slots` equal parts takes, each with its weight.

    Every part has equally many, so that all processes run equally many forwards; what is missing is filled with the
    first row at weight 0.
    """
    rows = [(row, 1.0) for row in range(slot, count, slots)]
    return rows + [(0, 0.0)] * (math.ceil(count / slots) - len(rows))
