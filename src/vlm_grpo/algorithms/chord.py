"""CHORD (arXiv:2508.11408): GRPO, and SFT on separate batches of demonstrations with a scheduled weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import AlgorithmConfig, AlgorithmOptions, MicroStep, RunContext, Score
from vlm_grpo.algorithms.demonstration_encoder import DemonstrationStream, demonstration_columns
from vlm_grpo.algorithms.off_policy import DemonstrationAlgorithm, cosine
from vlm_grpo.data.demonstrations import expert_answers
from vlm_grpo.records import Row

if TYPE_CHECKING:
    from vlm_grpo.rollouts.batch import RolloutBatch


def chord_phi(logps: Tensor) -> Tensor:
    """Return p (1 - p), without gradient: tokens that are almost certain or very unlikely count little."""
    probabilities = logps.detach().exp()
    return probabilities * (1 - probabilities)


def chord_mix(rl_loss: Tensor, sft_loss: Tensor, mu: float) -> Tensor:
    """Return (1 - mu) of the RL loss and mu of the SFT loss."""
    return (1 - mu) * rl_loss + mu * sft_loss


def shard_rows(count: int, shard: int, shards: int) -> list[tuple[int, float]]:
    """Return which of `count` rows one of `shards` equal shards takes, each with its weight.

    All shards have equally many rows, so that all processes run equally many forward passes; missing ones are filled
    with the first row at weight 0.
    """
    rows = [(row, 1.0) for row in range(shard, count, shards)]
    return rows + [(0, 0.0)] * (math.ceil(count / shards) - len(rows))


@dataclass(frozen=True)
class CHORDOptions(AlgorithmOptions):
    """The schedule of the SFT weight mu, and the batches.

    mu rises linearly over `mu_warmup` steps to `mu_peak` and falls by a cosine over `mu_decay` steps to `mu_valley`.
    With `phi`, each token is weighted by p (1 - p). `expert_batch` demonstrations serve one optimizer step of all
    processes together; None is a quarter of the completions of a step.
    """

    mu_warmup: int = 200
    mu_decay: int = 400
    mu_peak: float = 0.5
    mu_valley: float = 0.02
    phi: bool = False
    expert_batch: int | None = None

    def validate(self, num_generations: int) -> str | None:
        if not 0 <= self.mu_valley <= self.mu_peak <= 1:
            return "0 <= mu_valley <= mu_peak <= 1 must hold"
        if min(self.mu_warmup, self.mu_decay) < 0:
            return "mu_warmup and mu_decay must not be negative"
        return "expert_batch must be at least 1" if self.expert_batch is not None and self.expert_batch < 1 else None

    def mu(self, step: int) -> float:
        """Return the weight at an optimizer step, counted from 0."""
        if step < self.mu_warmup:
            return self.mu_peak * step / self.mu_warmup
        progress = (step - self.mu_warmup) / self.mu_decay if self.mu_decay else 1.0
        return cosine(progress, self.mu_peak, self.mu_valley)


@dataclass(frozen=True)
class ExpertBatch:
    """The demonstrations of one optimizer step, equal on all processes; `anywhere` says which media they have."""

    step: int
    rows: list[Row]
    tokens: list[list[int]]
    anywhere: list[bool]


class CHORD(DemonstrationAlgorithm):
    """GRPO with an additional SFT loss.

    Raises:
        ValueError: the demonstrations are a stream, whose rows have no numbers, or there are none.
    """

    Options = CHORDOptions
    options: CHORDOptions
    takes_demonstration_rows = True
    state_file = "expert.json"

    def __init__(self, name: str, config: AlgorithmConfig, run: RunContext) -> None:
        super().__init__(name, config, run)
        self.stream = self._stream()
        self._batch: ExpertBatch | None = None

    def _stream(self) -> DemonstrationStream:
        from datasets import IterableDataset

        if isinstance(self.run.demonstration_rows, IterableDataset):
            raise ValueError(f"--algorithm {self.name} draws rows by number, which --streaming cannot")
        columns = demonstration_columns(self.run.demonstration_rows)
        numbers = [number for number, row in enumerate(columns) if expert_answers(row)]
        if not numbers:
            raise ValueError(f"--algorithm {self.name}: no row that is short enough has a demonstration")
        return DemonstrationStream(numbers, self.args.seed)

    def extra_loss(
        self, loss: Tensor, batch: RolloutBatch, place: MicroStep, score: Score
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss mixed with the SFT loss of this micro-batch's share of the demonstrations."""
        mu = self.options.mu(place.step)
        if not mu:
            return loss, {"expert/mu": mu}
        sft = self._sft_loss(score, place)
        return chord_mix(loss, sft, mu), {"expert/mu": mu, "expert/loss": self.mean_over_ranks(sft * place.count)}

    def _sft_loss(self, score: Score, place: MicroStep) -> Tensor:
        """Return this micro-batch's share of the mean over all tokens of the step's demonstrations."""
        from vlm_grpo.rollouts.encoder import drop_images  # imports TRL, which a list of names must not

        batch, world = self._batch_of(place.step), self.ranks.count
        mine = shard_rows(len(batch.rows), place.index * world + self.ranks.index, place.count * world)
        prompts = drop_images(self.run.encoder.encode([batch.rows[row] for row, _ in mine]))
        logps, mask = self.logprobs_of(score, prompts, [batch.tokens[row] for row, _ in mine], batch.anywhere)
        weights = mask * torch.tensor([[weight] for _, weight in mine], device=mask.device)
        losses = -logps * (chord_phi(logps) if self.options.phi else 1.0)
        return (losses * weights).sum() * world / sum(map(len, batch.tokens))

    def _batch_of(self, step: int) -> ExpertBatch:
        """Return the demonstrations of an optimizer step, the same for all of its micro-batches and retries."""
        if self._batch is None or self._batch.step != step:
            self._batch = self._draw(step)
        return self._batch

    def _draw(self, step: int) -> ExpertBatch:
        from vlm_grpo.rollouts.encoder import MEDIA_KINDS
        from vlm_grpo.rollouts.messages import read_prompt

        completions = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.ranks.count
        numbers = self.stream.take(self.options.expert_batch or max(1, completions // 4))
        rows = [self.run.demonstration_rows[number] for number, _ in numbers]
        answers = [expert_answers(row) for row in rows]
        demonstrations = [each[turn % len(each)] for each, (_, turn) in zip(answers, numbers, strict=True)]
        prompts = [read_prompt(row) for row in rows]
        media = {"image": any(p.images for p in prompts), "video": any(p.videos for p in prompts)}
        tokens = [self.encode.checked(answer) for answer in demonstrations]
        return ExpertBatch(step, rows, tokens, [media[kind] for kind in MEDIA_KINDS])

    def state_dict(self) -> dict[str, int]:
        """Return the position in the order of demonstrations."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, int], where: str) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it was written with other rows or another seed.
        """
        self.stream.load_state_dict(state, where)
        self._batch = None
