"""All completions of a prompt from one prefill: the cache is repeated, and rows that have ended leave the batch.

`PromptOnce` is handed to `generate(custom_generate=...)`: transformers prepares inputs, cache, logits processors and
stopping criteria; only the loop over tokens is here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from vlm_grpo.trainers.hotpath.cache import fixed, is_plain, repeated
from vlm_grpo.trainers.rollout import Sample, collate_per_token, collate_visual, unique

logger = logging.getLogger(__name__)

# Selecting the cache's living rows costs about as much as reading them once; it is not worth it for a few.
WORTH_DROPPING = 0.25


def row_numbers(samples: Sequence[Sample]) -> list[int]:
    """For each row, which of `unique(samples)` it continues."""
    numbers = {id(sample): number for number, sample in enumerate(unique(samples))}
    return [numbers[id(sample)] for sample in samples]


def prompt_batch(prompts: Sequence[Sample], pad: int) -> dict[str, Tensor]:
    """Inputs of `generate` for some prompts, padded on the left, on the host."""
    longest = max(len(prompt.input_ids) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)  # (U, P)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids)
        ids[number, start:] = torch.tensor(prompt.input_ids)
        mask[number, start:] = 1
    visual = {**collate_visual(prompts), **collate_per_token(prompts, longest, 0)}
    return {"input_ids": ids, "attention_mask": mask, **visual}


def until_end(completions: Tensor, ends: Sequence[int]) -> list[list[int]]:
    """Each row of (B, C) tokens up to and with its first end-of-sequence token."""
    is_end = torch.isin(completions, torch.tensor(list(ends), device=completions.device))
    lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, completions.size(1))
    return [row[:length] for row, length in zip(completions.tolist(), lengths.tolist(), strict=True)]


class PromptOnce:
    """A decoding method: row b of the result continues prompt `rows[b]` of the batch that `generate` was given.

    Args:
        rows: (B,), numbers of prompts.
        is_alone: decode without the hooks on the whole model: DeepSpeed's waits there for the other processes, which
            may have fewer tokens to sample.
        is_static: decode with a cache of fixed size, whose step transformers compiles on a GPU: one launch for a token
            instead of one for each kernel. Rows that have ended then stay in the batch.
    """

    def __init__(self, rows: Sequence[int], is_static: bool = False, is_alone: bool = False) -> None:
        self.rows = rows
        self.is_alone = is_alone
        self.is_static = is_static

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **state: Any,
    ) -> Tensor:
        """Token ids (B, P + C) for U prompts of P tokens; what follows a row's end is padding."""
        outputs = model._prefill(input_ids, generation_config, state)
        state = model._update_model_kwargs_for_generation(outputs, state)
        rows = torch.tensor(self.rows, device=input_ids.device)
        cache, step = state["past_key_values"], model.forward if self.is_alone else model.__call__
        if self.is_static and is_plain(cache):
            cache = fixed(cache, rows, model, generation_config.max_length)
            step = CompiledStep(model) if input_ids.is_cuda else step
        else:
            cache = repeated(cache, rows)
        state = {**rows_of(state, rows, len(input_ids)), "past_key_values": cache}
        text, scores = input_ids[rows], outputs.logits[:, -1].float()[rows]
        alive = torch.arange(len(rows), device=rows.device)  # the rows that the cache still holds
        ended = torch.zeros_like(alive, dtype=torch.bool)  # of these
        finished: dict[int, Tensor] = {}
        pad = generation_config._pad_token_tensor
        while True:
            chosen = choose(logits_processor(text, scores), generation_config.do_sample)
            chosen = chosen if pad is None else torch.where(ended, pad.to(chosen), chosen)
            text = torch.cat([text, chosen[:, None]], dim=1)
            ended = ended | stopping_criteria(text, None)
            if ended.all():
                break
            if not self.is_static and ended.float().mean() >= WORTH_DROPPING:
                finished |= {int(number): row for number, row in zip(alive[ended], text[ended], strict=True)}
                living = (~ended).nonzero().flatten()
                cache.batch_select_indices(living)
                state = rows_of(state, living, len(text))
                text, alive, ended = text[living], alive[living], ended[living]
            inputs = model.prepare_inputs_for_generation(text, next_sequence_length=1, **state)
            outputs = step(**inputs, return_dict=True)
            state = model._update_model_kwargs_for_generation(outputs, state)
            scores = outputs.logits[:, -1].float()
        finished |= {int(number): row for number, row in zip(alive, text, strict=True)}
        return padded([finished[number] for number in range(len(rows))], 0 if pad is None else int(pad))


def choose(scores: Tensor, do_sample: bool) -> Tensor:
    """One token for each row of (B, V) scores: sampled, or the best."""
    return torch.multinomial(scores.softmax(dim=-1), 1)[:, 0] if do_sample else scores.argmax(dim=-1)


class CompiledStep:
    """The model's forward as transformers compiles it for fixed caches; as it is where that fails."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.call = model.get_compiled_call(None)

    def __call__(self, **inputs: Any) -> Any:
        try:
            return self.call(**inputs)
        except RuntimeError as error:  # what torch's compiler raises
            if self.call == self.model.__call__:
                raise
            logger.warning("decoding cannot be compiled here (%s); every kernel is launched by itself", error)
            self.call = self.model.__call__
            return self.call(**inputs)


def rows_of(state: dict[str, Any], rows: Tensor, count: int) -> dict[str, Any]:
    """What `generate` carries from token to token beside the cache, for some rows of a batch of `count`.

    A row may come several times. Images have done their work in the prefill and are let go.
    """
    kept = {name: value for name, value in state.items() if name not in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL}
    return {name: _selected(value, rows, count) for name, value in kept.items()}


def _selected(value: Any, rows: Tensor, count: int) -> Any:
    """Rows of (B, L) tensors, and of (k, B, L) position ids."""
    if isinstance(value, Tensor) and value.ndim in (2, 3) and value.size(-2) == count:
        return value.index_select(-2, rows)
    return value


def padded(rows: Sequence[Tensor], pad: int) -> Tensor:
    """Rows of different lengths as one tensor, filled up on the right."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
