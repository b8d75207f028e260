"""Completions of data rows by a model in this process, through the encoder that training uses.

Only sampling differs from a training rollout: same prompt, same pixels, same left padding. One row's completion does
not depend on the rows beside it, but for rounding: also drawn ones, since each has a random stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from vlm_grpo.answer_space import answer_space
from vlm_grpo.evaluation.predictions import RowCompletions, ScoredText
from vlm_grpo.evaluation.sampling_params import SamplingParams
from vlm_grpo.model_utils import placeholder_ids
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder, collate_per_token, collate_visual

__all__ = ["HFBackend", "ScoredText", "generate_greedy", "left_pad"]


@dataclass
class HFBackend:
    """Completes rows with a model in this process; the model's mode and torch's random state are unchanged.

    Args:
        model: anything with `generate`, not wrapped by DDP or DeepSpeed.
        processor: the model's processor, with its pixel limits set.
        batch_size: completions per `generate`.
        max_completion_length: tokens of a completion.
        template_options: keyword arguments of `apply_chat_template`.
        answer_space: the coordinate space of the model's boxes; None is that of its family.

    Raises:
        ValueError: batch_size or max_completion_length is below 1.
    """

    model: Any
    processor: Any
    batch_size: int = 16
    max_completion_length: int = 256
    template_options: Mapping[str, Any] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    answer_space: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_completion_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, dataset: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> Iterator[list[RowCompletions]]:
        """Yield the numbered rows with their completions, a batch at a time, in order."""
        encoder = self.encoder()
        for batch_numbers in self.batches(numbers):
            batch = [dataset[number] for number in batch_numbers]
            yield self._answered(encoder, batch_numbers, batch)

    def encoder(self) -> PromptEncoder:
        """Return the encoder of prompts, with this model's processor."""
        return PromptEncoder(self.processor, self.template_options or {})

    def batches(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the numbers of rows that are completed together."""
        rows_at_once = max(1, self.batch_size // self.sampling.num_samples)
        for start in range(0, len(numbers), rows_at_once):
            yield numbers[start : start + rows_at_once]

    def facts(self, encoder: PromptEncoder, sample: EncodedPrompt) -> dict[str, Any]:
        """Return the facts about a prompt's images for rewards and environments."""
        space = answer_space(getattr(self.model.config, "model_type", ""), self.answer_space)
        return {**encoder.image_facts(sample), "answer_space": space}

    @property
    def ends(self) -> set[int]:
        """Every token that ends a completion: the tokenizer's and those of the model's generation settings."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return {token for token in [*listed, self.processor.tokenizer.eos_token_id] if token is not None}

    def tokens_after(self, samples: Sequence[EncodedPrompt], seeds: Sequence[int], most: int) -> list[list[int]]:
        """Return the completion of each prompt: at most `most` tokens, up to and including the end token.

        Args:
            seeds: of each prompt's draws.
        """
        ids: list[list[int]] = []
        with _eval_mode(self.model):
            for start in range(0, len(samples), self.batch_size):
                part = slice(start, start + self.batch_size)
                ids += self._tokens_of_batch(samples[part], seeds[part], most)
        return ids

    def _answered(
        self, encoder: PromptEncoder, numbers: Sequence[int], batch: Sequence[Mapping[str, Any]]
    ) -> list[RowCompletions]:
        samples = encoder.encode(batch)
        num_samples = self.sampling.num_samples
        jobs = [
            (sample, self.sampling.seed_of(n, k))
            for n, sample in zip(numbers, samples, strict=True)
            for k in range(num_samples)
        ]
        prompts, seeds = [sample for sample, _ in jobs], [seed for _, seed in jobs]
        tokens = self.tokens_after(prompts, seeds, self.max_completion_length)
        done = [self._completion(encoder, *pair) for pair in zip(prompts, tokens, strict=True)]
        return [
            RowCompletions(number, row, done[place * num_samples : (place + 1) * num_samples])
            for place, (number, row) in enumerate(zip(numbers, batch, strict=True))
        ]

    def _completion(self, encoder: PromptEncoder, sample: EncodedPrompt, ids: list[int]) -> ScoredText:
        facts = {**self.facts(encoder, sample), "turn_opening": sample.opening}
        return ScoredText(sample.opening + encoder.decode(ids), len(ids), ids[-1] not in self.ends, facts)

    def _tokens_of_batch(self, samples: Sequence[EncodedPrompt], seeds: Sequence[int], most: int) -> list[list[int]]:
        model, tokenizer, ends = self.model, self.processor.tokenizer, self.ends
        padding = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
        inputs = left_pad(samples, padding)
        # A hub model's own generation settings are for chatting: a repetition penalty would change what is greedy.
        output = model.generate(
            **{name: tensor.to(model.device) for name, tensor in inputs.items()},
            do_sample=False,
            use_cache=True,  # many checkpoints say false: they were saved by a training
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=most,
            eos_token_id=sorted(ends),
            pad_token_id=padding,
            suppress_tokens=placeholder_ids(model.config, tokenizer),
            **_sampling_options(self.sampling, seeds, model.device),
        )
        return [_truncate_at_end(ids, ends) for ids in output[:, inputs["input_ids"].size(1) :].tolist()]


class GumbelNoise(LogitsProcessor):
    """Adds noise so that the argmax is a sample from softmax(scores): the Gumbel-max trick (arXiv:1411.0030).

    Every row has its own random stream, so its draw does not depend on the batch that it is in.
    """

    def __init__(self, seeds: Sequence[int], device: Any) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` (B, V) with noise; impossible tokens (-inf) stay impossible."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self.streams, strict=True):
            row.exponential_(generator=stream)
        return scores.float() - noise.log()


def _sampling_options(sampling: SamplingParams, seeds: Sequence[int], device: Any) -> dict[str, Any]:
    """Return the arguments that make `generate` sample; none for greedy decoding."""
    if sampling.is_greedy:
        return {}
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return {"logits_processor": LogitsProcessorList([*steps, GumbelNoise(seeds, device)])}


def generate_greedy(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> list[ScoredText]:
    """Return one greedy completion per row, in order.

    Args:
        rows: rows of `vlm_grpo.load_dataset` or any rows that the trainers take.
        on_batch: called with the size of each finished batch.
        options: `batch_size`, `max_completion_length`, `template_options` of `HFBackend`.
    """
    completions: list[ScoredText] = []
    for batch in HFBackend(model, processor, **options)(rows, range(len(rows))):
        completions += [entry.completions[0] for entry in batch]
        if on_batch is not None:
            on_batch(len(batch))
    return completions


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Disable dropout and gradients; afterwards restore the mode of every module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def left_pad(samples: Sequence[EncodedPrompt], pad_token_id: int) -> dict[str, Tensor]:
    """Return model inputs of some prompts: left-padded (B, P) ids and mask, and their visual tensors."""
    longest = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), longest), pad_token_id)
    mask = torch.zeros(len(samples), longest, dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, longest - len(sample.input_ids) :] = torch.tensor(sample.input_ids)
        mask[row, longest - len(sample.input_ids) :] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        **collate_visual(samples),
        **collate_per_token(samples, longest, 0),
    }


def _truncate_at_end(ids: list[int], ends: set[int]) -> list[int]:
    length = next((index for index, token in enumerate(ids) if token in ends), None)
    return ids if length is None else ids[: length + 1]
