"""Greedy completions of data rows, through the encoder that training uses.

Only sampling differs from a training rollout: same prompt, same pixels, same left padding. One row's completion does
not depend on the rows beside it, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm_grpo.families import coordinate_space
from vlm_grpo.loading import placeholder_ids
from vlm_grpo.trainers.rollout import PromptEncoder, Sample, collate_per_token, collate_visual


class Completion(NamedTuple):
    """Decoded text without special tokens, its length in tokens, whether it ran into the length limit.

    `facts` are what rewards are told of the prompt's images.
    """

    text: str
    num_tokens: int
    is_truncated: bool
    facts: Mapping[str, Any] = MappingProxyType({})


def generate_greedy(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 16,
    max_completion_length: int = 256,
    template_options: Mapping[str, Any] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per row, in order; the model's mode and torch's random state stay as they were.

    Args:
        model: anything with `generate`, not wrapped by DDP or DeepSpeed.
        processor: the model's processor, with its pixel limits set.
        rows: rows of `vlm_grpo.load_dataset` or any rows that the trainers take.
        template_options: keyword arguments of `apply_chat_template`.
        on_batch: is told the size of each batch that is done.

    Raises:
        ValueError: batch_size or max_completion_length is below 1.
    """
    for name, value in (("batch_size", batch_size), ("max_completion_length", max_completion_length)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    encoder = PromptEncoder(processor, template_options or {})
    completions: list[Completion] = []
    with _evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
            samples = encoder.encode(batch)
            done = _complete(model, processor.tokenizer, samples, max_completion_length)
            space = {"answer_space": coordinate_space(getattr(model.config, "model_type", ""))}
            completions += [c._replace(facts=encoder.facts(s) | space) for c, s in zip(done, samples, strict=True)]
            if on_batch is not None:
                on_batch(len(batch))
    return completions


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout and gradients off; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _complete(model: Any, tokenizer: Any, samples: list[Sample], limit: int) -> Iterator[Completion]:
    inputs = left_padded(samples, tokenizer.pad_token_id)
    ends = _end_tokens(model, tokenizer)
    # A hub model's own generation settings are for chatting: a repetition penalty would change what is greedy.
    output = model.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=limit,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=placeholder_ids(model.config, tokenizer),
    )
    for ids in output[:, inputs["input_ids"].size(1) :].tolist():
        length = next((index for index, token in enumerate(ids) if token in ends), None)
        kept = ids if length is None else ids[: length + 1]
        yield Completion(tokenizer.decode(kept, skip_special_tokens=True), len(kept), length is None)


def left_padded(samples: Sequence[Sample], pad_token_id: int) -> dict[str, Tensor]:
    """Model inputs of some prompts: (B, P) ids and mask with padding on the left, and their visual tensors."""
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


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a completion: the tokenizer's and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
