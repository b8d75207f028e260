"""Imitation beside a rollout's loss: batches of an expert's answers (CHORD), and the hints that prompts got (UFT).

Both score given tokens after given prompts with the pass that the loss itself uses, shared prompts and images included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn

from vlm_grpo.algorithms.expert import CHORD, UFT, OffPolicyConfig, chord_mix, chord_phi, shard_rows
from vlm_grpo.data.experts import expert_answers
from vlm_grpo.data.writing import write_whole
from vlm_grpo.rollouts.encoder import MEDIA_KINDS, EncodedPrompt, drop_images
from vlm_grpo.rollouts.messages import read_prompt
from vlm_grpo.trainers.demonstration_encoder import DemonstrationEncoder, DemonstrationStream, answer_columns

STATE = "expert.json"


@dataclass(frozen=True)
class ExpertBatch:
    """The rows and tokens of one optimizer step, on all processes alike; `anywhere` says which MEDIA they show."""

    step: int
    rows: list[dict[str, Any]]
    tokens: list[list[int]]
    anywhere: list[bool]


class Imitation:
    """Mixin over `VLMTrainerMixin`: adds its losses where the plan of the algorithm asks for them."""

    _plan: OffPolicyConfig | None
    _encode_answer: DemonstrationEncoder
    _demonstrations: Any

    def _start_imitation(self) -> None:
        """Find the rows that have an answer; called once.

        Raises:
            ValueError: the data are a stream, whose rows have no numbers.
        """
        self._batch: ExpertBatch | None = None
        self._stream: DemonstrationStream | None = None
        if not isinstance(self._plan, CHORD):
            return
        self._answered = self.train_dataset if self._demonstrations is None else self._demonstrations
        if isinstance(self._answered, IterableDataset):
            raise ValueError(f"--algorithm {self.args.algorithm} draws rows by number, which --streaming cannot")
        found = [number for number, row in enumerate(answer_columns(self._answered)) if expert_answers(row)]
        if not found:
            raise ValueError(f"--algorithm {self.args.algorithm}: no row that is short enough has an expert's answer")
        self._stream = DemonstrationStream(found, self.args.seed)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if not self.model.training:
            return loss
        if isinstance(self._plan, CHORD):
            mu = self._plan.mu(self.state.global_step)
            self._metrics["train"]["expert/mu"].append(mu)
            return chord_mix(loss, self._loss_of_answers(model), mu) if mu else loss
        if isinstance(self._plan, UFT) and inputs["hint_tokens"] > 0:
            return loss + self._plan.hint_coef * self._loss_of_hints(model, inputs)
        return loss

    def _loss_of_answers(self, model: nn.Module) -> Tensor:
        """This micro-batch's part of the mean over all tokens of the step's answers."""
        batch, world = self._batch_of_step(), self.accelerator.num_processes
        parts = self.current_gradient_accumulation_steps
        slot = (self._step - self._begun.micro_step) * world + self.accelerator.process_index
        mine = shard_rows(len(batch.rows), slot, parts * world)
        samples = drop_images(self.encoder.encode([batch.rows[row] for row, _ in mine]))
        tokens = [batch.tokens[row] for row, _ in mine]
        logps, mask = self._score_given(model, samples, tokens, batch.anywhere)
        weights = mask * torch.tensor([[weight] for _, weight in mine], device=mask.device)
        losses = -logps * (chord_phi(logps) if self._plan.phi else 1.0)
        loss = (losses * weights).sum() * world / sum(map(len, batch.tokens))
        self._log_imitation(loss * parts)
        return loss

    def _batch_of_step(self) -> ExpertBatch:
        """The same for all micro-batches of an optimizer step, also for those that are taken again."""
        step = self.state.global_step
        if self._batch is None or self._batch.step != step:
            everyone = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            size = self._plan.expert_batch or max(1, everyone * self.accelerator.num_processes // 4)
            taken = self._stream.take(size)
            rows = [self._answered[number] for number, _ in taken]
            answers = [expert_answers(row) for row in rows]
            chosen = [known[turn % len(known)] for known, (_, turn) in zip(answers, taken, strict=True)]
            prompts = [read_prompt(row) for row in rows]
            shown = {"image": any(p.images for p in prompts), "video": any(p.videos for p in prompts)}
            anywhere = [shown[kind] for kind in MEDIA_KINDS]
            self._batch = ExpertBatch(step, rows, [self._encode_answer.checked(a) for a in chosen], anywhere)
        return self._batch

    def _loss_of_hints(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's part of the mean over all tokens of the step's hints, one hint for each completion."""
        rows = {id(sample): sample for sample in inputs["samples"] if sample.begun}
        counts = [sum(sample is other for other in inputs["samples"]) for sample in rows.values()]
        samples, tokens = [without_hint(s) for s in rows.values()], [s.input_ids[-s.begun :] for s in rows.values()]
        if not rows:  # other processes have some
            samples, tokens, counts = inputs["samples"][:1], [[self._encode_answer.end]], [0]
        logps, mask = self._score_given(model, samples, tokens, self._media_anywhere)
        weights = mask * torch.tensor(counts, device=mask.device)[:, None]
        parts = self.current_gradient_accumulation_steps
        everyone = inputs["hint_tokens"] * parts / self.args.steps_per_generation / self.accelerator.num_processes
        loss = (-logps * weights).sum() / everyone
        self._log_imitation(loss * parts)
        return loss

    def _score_given(
        self, model: nn.Module, samples: Sequence[EncodedPrompt], tokens: Sequence[list[int]], anywhere: list[bool]
    ) -> tuple[Tensor, Tensor]:
        """(N, C) log-probabilities of given completions, with gradients, and their mask."""
        ids, mask, width = padded_rows(samples, tokens, self._tokenizer.pad_token_id)
        device = self.accelerator.device
        kept = self._samples, self._media_anywhere
        self._samples, self._media_anywhere = list(samples), anywhere
        try:
            logps, _, _ = self._get_per_token_logps_and_entropies(model, ids.to(device), mask.to(device), width)
        finally:
            self._samples, self._media_anywhere = kept
        return logps, mask[:, -width:].to(device)

    def _log_imitation(self, loss: Tensor) -> None:
        mean = self.accelerator.reduce(loss.detach(), reduction="mean")
        self._metrics["train"]["expert/loss"].append(mean.item())

    def _save_rng_state(self, output_dir: str) -> None:
        if self._stream is not None and self.args.process_index == 0:
            path = Path(output_dir) / STATE
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(self._stream.state()) + "\n")
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / STATE
        if self._stream is not None and checkpoint is not None and path.is_file():
            self._stream.restore(json.loads(path.read_text(encoding="utf-8")), str(path))
            self._batch = None


def without_hint(sample: EncodedPrompt) -> EncodedPrompt:
    """The prompt before the hint that it ends with."""
    per_token = {name: values[: -sample.begun] for name, values in sample.per_token.items()}
    return replace(sample, input_ids=sample.input_ids[: -sample.begun], per_token=per_token, begun=0)


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
