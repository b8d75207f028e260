"""All completions of a prompt from one prefill: the cache is repeated, and finished rows leave the batch.

`SharedPrefillGenerate` is passed to `generate(custom_generate=...)`: transformers prepares the prompts, logits
processors and stopping criteria; the loop over tokens is here, with a cache of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import CompileConfig, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import ModelOutput

from vlm_grpo.model_utils import method_of, model_config
from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_per_token, collate_visual, unique_prompts
from vlm_grpo.rollouts.engines.captured_step import CapturedStep
from vlm_grpo.rollouts.engines.kv_cache import repeat_cache, static_cache, supports_static_cache
from vlm_grpo.rollouts.engines.token_fields import TokenFields
from vlm_grpo.rollouts.engines.transformers_compat import CACHE, forward_inputs, returned_cache

logger = logging.getLogger(__name__)

# dynamic: the cache grows, finished rows leave it. static: a cache of fixed size, every row stays to the end.
# captured: the same, with a step recorded as a CUDA graph: one launch for a token instead of one for each kernel.
# compiled: the same, with a step that torch compiles.
Decoding = Literal["dynamic", "static", "captured", "compiled"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)

# Selecting the cache's active rows costs about as much as reading them once; it does not pay off for a few.
MIN_FINISHED_FRACTION = 0.25

# Options of a generation that only `generate` itself implements, with the values that switch them off.
UNSUPPORTED_OPTIONS: dict[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "watermarking_config": (None,),
    "use_cache": (None, True),
}


def unsupported_options(config: GenerationConfig) -> list[str]:
    """Return the options that are set and that `SharedPrefillGenerate` does not implement."""
    return [name for name, neutral in UNSUPPORTED_OPTIONS.items() if getattr(config, name, None) not in neutral]


def prompt_indices(prompts: Sequence[EncodedPrompt]) -> list[int]:
    """Return, for each row, which of `unique_prompts(prompts)` it continues."""
    numbers = {id(prompt): number for number, prompt in enumerate(unique_prompts(prompts))}
    return [numbers[id(prompt)] for prompt in prompts]


def prompt_batch(prompts: Sequence[EncodedPrompt], pad: int) -> dict[str, Tensor]:
    """Return the inputs of `generate` for some prompts, padded on the left, on the host."""
    longest = max(len(prompt.input_ids) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)  # (U, P)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids)
        ids[number, start:] = torch.tensor(prompt.input_ids)
        mask[number, start:] = 1
    visual = {**collate_visual(prompts), **collate_per_token(prompts, longest, 0)}
    return {"input_ids": ids, "attention_mask": mask, **visual}


def trim_completions(completions: Tensor, stop_token_ids: Sequence[int]) -> list[list[int]]:
    """Return each row of (B, C) tokens up to and including its first stop token."""
    is_end = torch.isin(completions, torch.tensor(list(stop_token_ids), device=completions.device))
    lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, completions.size(1))
    return [row[:length] for row, length in zip(completions.tolist(), lengths.tolist(), strict=True)]


class SharedPrefillGenerate:
    """A decoding method: row b of the result continues prompt `rows[b]` of the batch that `generate` was given.

    Args:
        rows: (B,), numbers of prompts.
        decoding: how the tokens after the first are computed. Layers that no cache of fixed size can hold, those with
            a sliding window, are decoded dynamically.
        skips_hooks: decode without the forward hooks of the whole model: DeepSpeed's waits for the other processes,
            which may have fewer tokens to sample.

    Raises:
        ValueError: there is no such decoding.
    """

    def __init__(self, rows: Sequence[int], decoding: Decoding = "dynamic", skips_hooks: bool = False) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"decoding must be one of {', '.join(DECODINGS)}, got {decoding!r}")
        self.rows = rows
        self.decoding = decoding
        self.skips_hooks = skips_hooks

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **prepared: Any,
    ) -> Tensor:
        """Return token ids (B, P + C) for U prompts of P tokens; what follows a row's end is padding."""
        inputs = forward_inputs(prepared)
        prompts = TokenFields.from_prompts(inputs)
        scores, cache = prefill(model, input_ids, inputs)
        rows = torch.tensor(self.rows, device=input_ids.device)
        is_fixed = self.decoding != "dynamic" and supports_static_cache(cache)
        cache = (
            static_cache(cache, rows, model, generation_config.max_length) if is_fixed else repeat_cache(cache, rows)
        )
        forward = self._forward(model, self.decoding if is_fixed else "dynamic", generation_config)
        keep = {name: inputs[name] for name in ("logits_to_keep",) if name in inputs}
        state = DecodingState(input_ids[rows], prompts.select(rows), cache, generation_config.pad_token_id or 0)
        scores = scores[rows]
        while True:
            scores = logits_processor(state.token_ids, scores)  # type: ignore[arg-type]  # any tensors of their kinds
            state.append(choose_tokens(scores, generation_config.do_sample))
            state.mark_finished(stopping_criteria(state.token_ids, None))
            if state.is_finished.all():
                return state.all_rows()
            if not is_fixed and state.is_finished.float().mean() >= MIN_FINISHED_FRACTION:
                state.drop_finished()
            scores = state.step(model, forward, keep)

    def _forward(self, model: nn.Module, decoding: Decoding, config: GenerationConfig) -> Callable[..., ModelOutput]:
        if decoding == "compiled":
            return CompiledStep(model, config.compile_config)
        if decoding == "captured":
            return CapturedStep(model)
        return model.forward if self.skips_hooks else model.__call__


def prefill(model: nn.Module, input_ids: Tensor, inputs: ModelInputs) -> tuple[Tensor, Cache]:
    """Return the scores (U, V) of each prompt's first new token, and the prompts' cache.

    Args:
        inputs: of the model's forward, beside the prompts' tokens (U, P).
    """
    inputs = {**inputs, "use_cache": True, CACHE: DynamicCache(config=model_config(model))}
    outputs = model(
        **method_of(model, "prepare_inputs_for_generation")(input_ids, is_first_iteration=True, **inputs),
        return_dict=True,
    )
    return outputs.logits[:, -1].float(), returned_cache(outputs)


class DecodingState:
    """The rows of a rollout while they are decoded: those that the cache still holds, and those that have left it.

    Attributes:
        token_ids: (B, L) tokens of the rows that the cache holds.
        token_fields: their masks, positions and token types.
        is_finished: (B,) whether they are finished.
    """

    def __init__(self, token_ids: Tensor, token_fields: TokenFields, cache: Cache, pad: int) -> None:
        self.token_ids, self.token_fields, self.cache, self.pad = token_ids, token_fields, cache, pad
        self.is_finished = torch.zeros(len(token_ids), dtype=torch.bool, device=token_ids.device)
        self._row_numbers = torch.arange(len(token_ids), device=token_ids.device)  # of the rows that the cache holds
        self._finished_rows: dict[int, Tensor] = {}

    def append(self, tokens: Tensor) -> None:
        """Append a token (B,) to each row; padding to a finished row."""
        tokens = tokens.masked_fill(self.is_finished, self.pad)
        self.token_ids = torch.cat([self.token_ids, tokens[:, None]], dim=1)

    def mark_finished(self, is_finished: Tensor) -> None:
        """Mark the rows that are finished with their newest token."""
        self.is_finished = self.is_finished | is_finished

    def drop_finished(self) -> None:
        """Remove finished rows from the cache."""
        self._store(self.is_finished)
        active = (~self.is_finished).nonzero().flatten()
        self.cache.reorder_cache(active)  # type: ignore[arg-type]  # any tensor of int64
        self.token_fields = self.token_fields.select(active)
        self.token_ids, self._row_numbers, self.is_finished = (
            self.token_ids[active],
            self._row_numbers[active],
            self.is_finished[active],
        )

    def step(self, model: nn.Module, forward: Callable[..., ModelOutput], keep: ModelInputs) -> Tensor:
        """Return the scores (B, V) of the next token."""
        self.token_fields = self.token_fields.next()
        inputs = {**self.token_fields.fields, **keep, "use_cache": True, CACHE: self.cache}
        outputs = forward(
            **method_of(model, "prepare_inputs_for_generation")(self.token_ids, next_sequence_length=1, **inputs),
            return_dict=True,
        )
        self.cache = returned_cache(outputs)
        return outputs["logits"][:, -1].float()

    def all_rows(self) -> Tensor:
        """Return the tokens of all rows in their order, filled up with padding on the right."""
        self._store(torch.ones_like(self.is_finished))
        ordered = [self._finished_rows[number] for number in range(len(self._finished_rows))]
        return nn.utils.rnn.pad_sequence(ordered, batch_first=True, padding_value=self.pad)

    def _store(self, rows: Tensor) -> None:
        self._finished_rows |= {
            int(number): token_ids
            for number, token_ids in zip(self._row_numbers[rows], self.token_ids[rows], strict=True)
        }


def choose_tokens(scores: Tensor, do_sample: bool) -> Tensor:
    """Return one token for each row of (B, V) scores: sampled, or the best."""
    return torch.multinomial(scores.softmax(dim=-1), 1)[:, 0] if do_sample else scores.argmax(dim=-1)


class CompiledStep:
    """The model's forward as transformers compiles it for static caches; eager where that fails.

    Args:
        config: how it is compiled; None is transformers' default.
    """

    def __init__(self, model: nn.Module, config: CompileConfig | None) -> None:
        self.model = model
        self.call = method_of(model, "get_compiled_call")(config)

    def __call__(self, **inputs: Any) -> ModelOutput:
        try:
            return self.call(**inputs)
        except RuntimeError as error:  # what torch's compiler raises
            if self.call == self.model.__call__:
                raise
            logger.warning("decoding cannot be compiled here (%s); every kernel is launched by itself", error)
            self.call = self.model.__call__
            return self.call(**inputs)
