"""Imitation beside a rollout's loss: batches of an expert's answers (CHORD), and the hints that prompts got (UFT).

Both score given tokens after given prompts with the pass that the loss itself uses, shared prompts and images included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from datasets import IterableDataset
from torch import Tensor

from vlm_grpo.algorithms.expert import CHORD, UFT, chord_mix, chord_phi, shard_rows
from vlm_grpo.data.demonstrations import expert_answers
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.encoder import MEDIA_KINDS, EncodedPrompt, PromptEncoder, drop_images
from vlm_grpo.rollouts.messages import read_prompt
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.demonstration_encoder import DemonstrationEncoder, DemonstrationStream, answer_columns


@dataclass(frozen=True)
class ExpertBatch:
    """The rows and tokens of one optimizer step, on all processes alike; `anywhere` says which MEDIA they show."""

    step: int
    rows: list[dict[str, Any]]
    tokens: list[list[int]]
    anywhere: list[bool]


class MicroStep(NamedTuple):
    """Where a micro-batch stands: its optimizer step, its number in it, and how many that step has."""

    step: int
    number: int
    count: int


Score = Callable[[Sequence[EncodedPrompt], Sequence[bool], Tensor, Tensor, int], Tensor]


class SFTLoss:
    """Negative log-likelihood of demonstrations, beside the loss of the rollout.

    Args:
        config: of the algorithm: CHORD draws batches of demonstrations, UFT takes the hints of the rollout.
        rows: of the data that CHORD draws from.
        encoder: encodes prompts.
        encode: from a demonstration to its tokens.
        args: of the training.
        pad_token_id: pads rows.
        ranks: collectives of the run.

    Raises:
        ValueError: rows of a stream, which have no numbers, or none with a demonstration.
    """

    file = "expert.json"  # of a checkpoint

    def __init__(
        self,
        config: CHORD | UFT,
        rows: Any,
        encoder: PromptEncoder,
        encode: DemonstrationEncoder,
        args: Any,
        pad_token_id: int,
        ranks: Ranks,
    ) -> None:
        self.config, self.rows, self.encoder, self.encode = config, rows, encoder, encode
        self.args, self.pad_token_id, self.ranks = args, pad_token_id, ranks
        self.stream: DemonstrationStream | None = self._stream() if isinstance(config, CHORD) else None
        self._batch: ExpertBatch | None = None

    def _stream(self) -> DemonstrationStream:
        if isinstance(self.rows, IterableDataset):
            raise ValueError(f"--algorithm {self.args.algorithm} draws rows by number, which --streaming cannot")
        found = [number for number, row in enumerate(answer_columns(self.rows)) if expert_answers(row)]
        if not found:
            raise ValueError(f"--algorithm {self.args.algorithm}: no row that is short enough has an expert's answer")
        return DemonstrationStream(found, self.args.seed)

    def add(self, loss: Tensor, score: Score, batch: RolloutBatch, place: MicroStep) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a training micro-batch with that of demonstrations, and the numbers to log.

        Args:
            loss: of the rollout.
            score: from prompts, their media on any process, and (N, P + C) tokens and mask to (N, C) logprobs.
            batch: the micro-batch.
            place: of the micro-batch.
        """
        if isinstance(self.config, CHORD):
            mu = self.config.mu(place.step)
            if not mu:
                return loss, {"expert/mu": mu}
            sft = self._of_demonstrations(score, place)
            return chord_mix(loss, sft, mu), {"expert/mu": mu, "expert/loss": self._mean(sft * place.count)}
        if batch.num_hint_tokens > 0:
            sft = self._of_hints(score, batch, place)
            return loss + self.config.hint_coef * sft, {"expert/loss": self._mean(sft * place.count)}
        return loss, {}

    def _mean(self, loss: Tensor) -> float:
        return self.ranks.accelerator.reduce(loss.detach(), reduction="mean").item()

    def _of_demonstrations(self, score: Score, place: MicroStep) -> Tensor:
        """This micro-batch's part of the mean over all tokens of the step's demonstrations."""
        batch, world = self._batch_of(place.step), self.ranks.count
        mine = shard_rows(len(batch.rows), place.number * world + self.ranks.index, place.count * world)
        prompts = drop_images(self.encoder.encode([batch.rows[row] for row, _ in mine]))
        logps, mask = self._score(score, prompts, [batch.tokens[row] for row, _ in mine], batch.anywhere)
        weights = mask * torch.tensor([[weight] for _, weight in mine], device=mask.device)
        losses = -logps * (chord_phi(logps) if self.config.phi else 1.0)
        return (losses * weights).sum() * world / sum(map(len, batch.tokens))

    def _batch_of(self, step: int) -> ExpertBatch:
        """The same for all micro-batches of an optimizer step, also for those that are taken again."""
        if self._batch is None or self._batch.step != step:
            everyone = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            size = self.config.expert_batch or max(1, everyone * self.ranks.count // 4)
            numbers = self.stream.take(size)
            rows = [self.rows[number] for number, _ in numbers]
            answers = [expert_answers(row) for row in rows]
            chosen = [known[turn % len(known)] for known, (_, turn) in zip(answers, numbers, strict=True)]
            prompts = [read_prompt(row) for row in rows]
            media = {"image": any(p.images for p in prompts), "video": any(p.videos for p in prompts)}
            anywhere = [media[kind] for kind in MEDIA_KINDS]
            self._batch = ExpertBatch(step, rows, [self.encode.checked(a) for a in chosen], anywhere)
        return self._batch

    def _of_hints(self, score: Score, batch: RolloutBatch, place: MicroStep) -> Tensor:
        """This micro-batch's part of the mean over all tokens of the step's hints, one hint for each completion."""
        rows = {id(prompt): prompt for prompt in batch.prompts if prompt.answer_prefix_length}
        counts = [sum(prompt is other for other in batch.prompts) for prompt in rows.values()]
        prompts, tokens = (
            [without_hint(p) for p in rows.values()],
            [p.input_ids[-p.answer_prefix_length :] for p in rows.values()],
        )
        if not rows:  # other processes have some
            prompts, tokens, counts = batch.prompts[:1], [[self.encode.end]], [0]
        logps, mask = self._score(score, prompts, tokens, batch.media_anywhere)
        weights = mask * torch.tensor(counts, device=mask.device)[:, None]
        everyone = batch.num_hint_tokens * place.count / self.args.steps_per_generation / self.ranks.count
        return (-logps * weights).sum() / everyone

    def _score(
        self, score: Score, prompts: Sequence[EncodedPrompt], tokens: Sequence[list[int]], anywhere: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """Return (N, C) log-probabilities of given completions, with gradients, and their mask."""
        ids, mask, width = padded_rows(prompts, tokens, self.pad_token_id)
        device = self.ranks.accelerator.device
        return score(prompts, anywhere, ids.to(device), mask.to(device), width), mask[:, -width:].to(device)

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint keeps: how far demonstrations were drawn."""
        return {} if self.stream is None else self.stream.state()

    def load_state_dict(self, state: Mapping[str, int], where: str) -> None:
        """Go on where a checkpoint was written.

        Raises:
            ValueError: it was written with other rows or another seed.
        """
        if self.stream is not None:
            self.stream.restore(state, where)
            self._batch = None


def without_hint(sample: EncodedPrompt) -> EncodedPrompt:
    """The prompt before the hint that it ends with."""
    per_token = {name: values[: -sample.answer_prefix_length] for name, values in sample.per_token.items()}
    return replace(
        sample, input_ids=sample.input_ids[: -sample.answer_prefix_length], per_token=per_token, answer_prefix_length=0
    )


def padded_rows(samples: Sequence[EncodedPrompt], tokens: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor, int]:
    """(N, P + C) tokens and mask of prompts, padded on the left, and completions, padded on the right; and C."""
    longest, width = max(len(sample.input_ids) for sample in samples), max(map(len, tokens))
    ids = torch.full((len(samples), longest + width), pad)
    mask = torch.zeros_like(ids)
    for row, (sample, given) in enumerate(zip(samples, tokens, strict=True)):
        start, end = longest - len(sample.input_ids), longest + len(given)
        ids[row, start:end] = torch.tensor([*sample.input_ids, *given])
        mask[row, start:end] = 1
    return ids, mask, width
