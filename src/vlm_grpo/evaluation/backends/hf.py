"""Generate completions of data rows with a model in this process, through the encoder and engine of training.

Only sampling differs from a training rollout. Up to rounding, a completion does not depend on its batch: each
sampled one has its own random stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from vlm_grpo.answer_space import answer_space
from vlm_grpo.evaluation.predictions import RowCompletions, ScoredText
from vlm_grpo.evaluation.sampling_params import SamplingParams
from vlm_grpo.model_utils import model_config, placeholder_ids
from vlm_grpo.records import Row
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.transformers import TransformersEngine

if TYPE_CHECKING:
    from transformers import ProcessorMixin


__all__ = ["HFBackend", "ScoredText", "generate_greedy"]


@dataclass
class HFBackend:
    """Generates completions with a model in this process; its mode and torch's random state are not changed.

    Args:
        model: a model with `generate`, not wrapped by DDP or DeepSpeed.
        processor: the model's processor, with its pixel limits set.
        batch_size: completions per call of `generate`.
        max_completion_length: maximum number of tokens of a completion.
        template_options: keyword arguments of `apply_chat_template`.
        answer_space: the coordinate space of the model's boxes; None means that of its family.

    Raises:
        ValueError: batch_size or max_completion_length is below 1.
    """

    model: nn.Module
    processor: ProcessorMixin
    batch_size: int = 16
    max_completion_length: int = 256
    template_options: Mapping[str, object] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    answer_space: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_completion_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, dataset: Sequence[Row], numbers: Sequence[int]) -> Iterator[list[RowCompletions]]:
        """Yield the rows with these numbers and their completions, a batch at a time, in order."""
        encoder = self.encoder()
        for batch_numbers in self.batches(numbers):
            batch = [dataset[number] for number in batch_numbers]
            yield self._complete(encoder, batch_numbers, batch)

    def encoder(self) -> PromptEncoder:
        """Return the encoder of prompts, with this model's processor."""
        return PromptEncoder(self.processor, self.template_options or {})

    def batches(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the row numbers of each batch."""
        rows_at_once = max(1, self.batch_size // self.sampling.num_samples)
        for start in range(0, len(numbers), rows_at_once):
            yield numbers[start : start + rows_at_once]

    def facts(self, encoder: PromptEncoder, prompt: EncodedPrompt) -> dict[str, object]:
        """Return the facts about a prompt's images for rewards."""
        return {**encoder.image_facts(prompt), "answer_space": self.space}

    @property
    def space(self) -> str | None:
        """Return the coordinate space of the model's boxes."""
        return answer_space(getattr(model_config(self.model), "model_type", ""), self.answer_space)

    @property
    def placeholders(self) -> list[int]:
        """Return the image and video tokens, which completions must not contain."""
        return placeholder_ids(model_config(self.model), self.processor.tokenizer)

    @property
    def stop_token_ids(self) -> set[int]:
        """Return all tokens that end a completion: those of the tokenizer and of the generation config."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return {token for token in [*listed, self.processor.tokenizer.eos_token_id] if token is not None}

    def generate(self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Return the completion of each prompt: at most `max_new_tokens`, up to and including the stop token.

        Args:
            seeds: seed of each prompt's random stream.
        """
        engine = self._engine(max_new_tokens)
        ids: list[list[int]] = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            noise = _sampling_processors(self.sampling, seeds[part], self._device)
            ids += engine.generate(prompts[part], logits_processor=noise).ids
        return ids

    @property
    def _device(self) -> torch.device:
        return torch.device(getattr(self.model, "device", "cpu"))

    def _engine(self, max_new_tokens: int) -> TransformersEngine:
        return TransformersEngine(
            open_model=partial(_eval_mode, self.model),
            config=self._generation_config(max_new_tokens),
            to_device=lambda inputs: {name: tensor.to(self._device) for name, tensor in inputs.items()},
            pad_token_id=self._pad_token_id,
            stop_token_ids=sorted(self.stop_token_ids),
        )

    @property
    def _pad_token_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        """Return a generation config for greedy decoding; sampling adds noise to the scores.

        The generation config of a Hub model is not used: its repetition penalty, for example, would change greedy
        decoding.
        """
        return GenerationConfig(
            do_sample=False,
            use_cache=True,  # many checkpoints have False because they were saved during training
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self.stop_token_ids),
            pad_token_id=self._pad_token_id,
            suppress_tokens=self.placeholders,
        )

    def _complete(self, encoder: PromptEncoder, numbers: Sequence[int], rows: Sequence[Row]) -> list[RowCompletions]:
        num_samples = self.sampling.num_samples
        prompts = [prompt for prompt in encoder.encode(rows) for _ in range(num_samples)]
        seeds = [self.sampling.seed_of(number, sample) for number in numbers for sample in range(num_samples)]
        tokens = self.generate(prompts, seeds, self.max_completion_length)
        completions = [self._completion(encoder, *pair) for pair in zip(prompts, tokens, strict=True)]
        return [
            RowCompletions(number, row, completions[index * num_samples : (index + 1) * num_samples])
            for index, (number, row) in enumerate(zip(numbers, rows, strict=True))
        ]

    def _completion(self, encoder: PromptEncoder, prompt: EncodedPrompt, ids: list[int]) -> ScoredText:
        facts = {**self.facts(encoder, prompt), "turn_opening": prompt.opening}
        return ScoredText(prompt.opening + encoder.decode(ids), len(ids), ids[-1] not in self.stop_token_ids, facts)


class GumbelNoise(LogitsProcessor):
    """Adds noise so that the argmax is a sample from softmax(scores): the Gumbel-max trick (arXiv:1411.0030).

    Every row has its own random stream, so its sample does not depend on its batch.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` (B, V) with noise; impossible tokens (-inf) stay impossible."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self.streams, strict=True):
            row.exponential_(generator=stream)
        return scores.float() - noise.log()


def _sampling_processors(
    sampling: SamplingParams, seeds: Sequence[int], device: torch.device
) -> LogitsProcessorList | None:
    """Return the logits processors that turn greedy decoding into sampling; None for greedy completions."""
    if sampling.is_greedy:
        return None
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*warpers, GumbelNoise(seeds, device)])


def generate_greedy(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[Row],
    *,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> list[ScoredText]:
    """Return one greedy completion per row, in order.

    Args:
        rows: rows of `vlm_grpo.load_dataset`, or any rows that the trainers accept.
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
def _eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model without dropout and gradients; afterwards restore the mode of every module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True
