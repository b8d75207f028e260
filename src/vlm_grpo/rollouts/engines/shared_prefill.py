"""All completions of a prompt from one prefill: the cache is repeated, and rows that have ended leave the batch.

`SharedPrefillGenerate` is handed to `generate(custom_generate=...)`: transformers prepares the prompts, logits
processors and stopping criteria; the loop over tokens is here, with a cache of its own that forwards are given and
give back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import CompileConfig, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache

from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_per_token, collate_visual, unique_prompts
from vlm_grpo.rollouts.engines.captured_step import CapturedStep
from vlm_grpo.rollouts.engines.kv_cache import can_be_fixed, repeat_cache, static_cache
from vlm_grpo.rollouts.engines.token_fields import TokenFields
from vlm_grpo.rollouts.engines.transformers_compat import CACHE, forward_inputs, returned_cache

logger = logging.getLogger(__name__)

# dynamic: the cache grows, rows that have ended leave it. static: a cache of fixed size, every row stays to the end.
# captured: the same, with a step recorded as a CUDA graph: one launch for a token instead of one for each kernel.
# compiled: the same, with a step that torch compiles.
Decoding = Literal["dynamic", "static", "captured", "compiled"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)

# Selecting the cache's living rows costs about as much as reading them once; it is not worth it for a few.
WORTH_DROPPING = 0.25

# Options of a generation that only `generate` itself carries out, with the values that ask for nothing.
LEFT_TO_GENERATE: dict[str, tuple[Any, ...]] = {
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


def left_to_generate(config: GenerationConfig) -> list[str]:
    """Return the options that are set and that `SharedPrefillGenerate` does not carry out."""
    return [name for name, idle in LEFT_TO_GENERATE.items() if getattr(config, name, None) not in idle]


def prompt_indices(samples: Sequence[EncodedPrompt]) -> list[int]:
    """For each row, which of `unique_prompts(samples)` it continues."""
    numbers = {id(sample): number for number, sample in enumerate(unique_prompts(samples))}
    return [numbers[id(sample)] for sample in samples]


def prompt_batch(prompts: Sequence[EncodedPrompt], pad: int) -> dict[str, Tensor]:
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


def trim_completions(completions: Tensor, ends: Sequence[int]) -> list[list[int]]:
    """Each row of (B, C) tokens up to and with its first end-of-sequence token."""
    is_end = torch.isin(completions, torch.tensor(list(ends), device=completions.device))
    lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, completions.size(1))
    return [row[:length] for row, length in zip(completions.tolist(), lengths.tolist(), strict=True)]


class SharedPrefillGenerate:
    """A decoding method: row b of the result continues prompt `rows[b]` of the batch that `generate` was given.

    Args:
        rows: (B,), numbers of prompts.
        decoding: how the tokens after the first are computed. Layers that no cache of fixed size can hold, those with
            a sliding window, are decoded dynamically.
        is_alone: decode without the hooks on the whole model: DeepSpeed's waits there for the other processes, which
            may have fewer tokens to sample.

    Raises:
        ValueError: there is no such decoding.
    """

    def __init__(self, rows: Sequence[int], decoding: Decoding = "dynamic", is_alone: bool = False) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"decoding must be one of {', '.join(DECODINGS)}, got {decoding!r}")
        self.rows = rows
        self.decoding = decoding
        self.is_alone = is_alone

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
        prompts = TokenFields.of_prompts(inputs)
        scores, cache = prefill(model, input_ids, inputs)
        rows = torch.tensor(self.rows, device=input_ids.device)
        is_fixed = self.decoding != "dynamic" and can_be_fixed(cache)
        cache = (
            static_cache(cache, rows, model, generation_config.max_length) if is_fixed else repeat_cache(cache, rows)
        )
        forward = self._forward(model, self.decoding if is_fixed else "dynamic", generation_config)
        keep = {name: inputs[name] for name in ("logits_to_keep",) if name in inputs}
        state = DecodingState(input_ids[rows], prompts.select(rows), cache, generation_config.pad_token_id or 0)
        scores = scores[rows]
        while True:
            state.append(choose(logits_processor(state.text, scores), generation_config.do_sample))
            state.end(stopping_criteria(state.text, None))
            if state.ended.all():
                return state.all_rows()
            if not is_fixed and state.ended.float().mean() >= WORTH_DROPPING:
                state.drop_ended()
            scores = state.step(model, forward, keep)

    def _forward(self, model: nn.Module, decoding: Decoding, config: GenerationConfig) -> Callable[..., Any]:
        if decoding == "compiled":
            return CompiledStep(model, config.compile_config)
        if decoding == "captured":
            return CapturedStep(model)
        return model.forward if self.is_alone else model.__call__


def prefill(model: nn.Module, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Cache]:
    """Return the scores (U, V) of each prompt's first new token, and the prompts' cache.

    Args:
        inputs: of the model's forward, beside the prompts' tokens (U, P).
    """
    given = {**inputs, "use_cache": True, CACHE: DynamicCache(config=model.config)}
    outputs = model(
        **model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **given), return_dict=True
    )
    return outputs.logits[:, -1].float(), returned_cache(outputs)


class DecodingState:
    """The rows of a rollout while they are decoded: those that the cache still holds, and those that have left it.

    Attributes:
        text: (B, L) tokens of the rows that the cache holds, `tokens` their fields, `ended` (B,) whether they are over.
    """

    def __init__(self, text: Tensor, tokens: TokenFields, cache: Cache, pad: int) -> None:
        self.text, self.tokens, self.cache, self.pad = text, tokens, cache, pad
        self.ended = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        self._numbers = torch.arange(len(text), device=text.device)  # of the rows that the cache holds
        self._left: dict[int, Tensor] = {}

    def append(self, chosen: Tensor) -> None:
        """Add a token (B,) to each row; a row that is over gets padding."""
        chosen = chosen.masked_fill(self.ended, self.pad)
        self.text = torch.cat([self.text, chosen[:, None]], dim=1)

    def end(self, is_over: Tensor) -> None:
        self.ended = self.ended | is_over

    def drop_ended(self) -> None:
        """Let the rows that are over leave the cache."""
        self._keep(self.ended)
        living = (~self.ended).nonzero().flatten()
        self.cache.reorder_cache(living)
        self.tokens = self.tokens.select(living)
        self.text, self._numbers, self.ended = self.text[living], self._numbers[living], self.ended[living]

    def step(self, model: nn.Module, forward: Callable[..., Any], keep: dict[str, Any]) -> Tensor:
        """Return the scores (B, V) of the next token."""
        self.tokens = self.tokens.next()
        given = {**self.tokens.fields, **keep, "use_cache": True, CACHE: self.cache}
        outputs = forward(
            **model.prepare_inputs_for_generation(self.text, next_sequence_length=1, **given), return_dict=True
        )
        self.cache = returned_cache(outputs)
        return outputs.logits[:, -1].float()

    def all_rows(self) -> Tensor:
        """Return the tokens of all rows in their order, filled up with padding on the right."""
        self._keep(torch.ones_like(self.ended))
        ordered = [self._left[number] for number in range(len(self._left))]
        return nn.utils.rnn.pad_sequence(ordered, batch_first=True, padding_value=self.pad)

    def _keep(self, rows: Tensor) -> None:
        self._left |= {int(number): text for number, text in zip(self._numbers[rows], self.text[rows], strict=True)}


def choose(scores: Tensor, do_sample: bool) -> Tensor:
    """One token for each row of (B, V) scores: sampled, or the best."""
    return torch.multinomial(scores.softmax(dim=-1), 1)[:, 0] if do_sample else scores.argmax(dim=-1)


class CompiledStep:
    """The model's forward as transformers compiles it for fixed caches; as it is where that fails.

    Args:
        config: how it is compiled; None is transformers' default.
    """

    def __init__(self, model: nn.Module, config: CompileConfig | None) -> None:
        self.model = model
        self.call = model.get_compiled_call(config)

    def __call__(self, **inputs: Any) -> Any:
        try:
            return self.call(**inputs)
        except RuntimeError as error:  # what torch's compiler raises
            if self.call == self.model.__call__:
                raise
            logger.warning("decoding cannot be compiled here (%s); every kernel is launched by itself", error)
            self.call = self.model.__call__
            return self.call(**inputs)
