"""Completions by transformers, in training and evaluation; unique prompts are prefilled once where possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.integrations import is_deepspeed_zero3_enabled

from vlm_grpo.rollouts.encoder import EncodedPrompt, unique_prompts
from vlm_grpo.rollouts.engines.shared_prefill import (
    Decoding,
    SharedPrefillGenerate,
    prompt_batch,
    prompt_indices,
    trim_completions,
    unsupported_options,
)
from vlm_grpo.shared_prefix.vision_cache import with_features


class TransformersEngine:
    """Generates completions of encoded prompts with a model in this process.

    Args:
        open_model: a context that returns the model to generate with: unwrapped, with all of its parameters on this
            process, and without gradients.
        to_device: moves the prompts' tensors to the device.
        pad_token_id: pads prompts on the left.
        stop_token_ids: end a completion.
        unsupported_reason: why the model's cache cannot be repeated for the completions of a prompt; None where it can.
        cache_features: runs the vision tower once for each image of some prompts; None where features change.
        decoding: how the tokens after a shared prefill are computed.
    """

    def __init__(
        self,
        *,
        open_model: Callable[[nn.Module], AbstractContextManager[nn.Module]],
        to_device: Callable[[Mapping[str, Any]], Mapping[str, Tensor]],
        pad_token_id: int,
        stop_token_ids: Sequence[int],
        unsupported_reason: str | None = None,
        cache_features: Callable[[nn.Module, Sequence[EncodedPrompt]], None] | None = None,
        decoding: Decoding = "dynamic",
    ) -> None:
        self.open_model, self.to_device, self.decoding = open_model, to_device, decoding
        self.pad_token_id, self.stop_token_ids = pad_token_id, list(stop_token_ids)
        self.unsupported_reason, self.cache_features = unsupported_reason, cache_features

    def repeats_cache(self, config: GenerationConfig) -> bool:
        """Return whether the model's cache can be repeated, and the settings leave decoding to a loop that does so."""
        is_dynamic = config.cache_implementation in (None, "dynamic")
        return is_dynamic and self.unsupported_reason is None and not unsupported_options(config)

    def generate(
        self,
        wrapped: nn.Module,
        prompts: Sequence[EncodedPrompt],
        config: GenerationConfig,
        *,
        shares_prefill: bool = True,
        logits_processor: LogitsProcessorList | None = None,
    ) -> list[list[int]]:
        """Return the tokens of one completion of each prompt, up to and including its stop token.

        Args:
            wrapped: the model, as `open_model` takes it.
            prompts: one for each completion; completions of the same prompt share its object.
            config: how tokens are chosen, and how many.
            shares_prefill: whether each unique prompt may be prefilled once. Finished rows then leave the batch: a logits
                processor with a state for each row needs False.
            logits_processor: further processors.
        """
        method = self._shared_prefill(prompts) if shares_prefill and self.repeats_cache(config) else None
        rows = prompts if method is None else unique_prompts(prompts)
        inputs = self.to_device(prompt_batch(rows, self.pad_token_id))
        with self.open_model(wrapped) as model:
            if self.cache_features is not None:
                self.cache_features(model, prompts)
                inputs = with_features(dict(inputs), rows)
            further = {} if logits_processor is None else {"logits_processor": logits_processor}
            ids = model.generate(**inputs, generation_config=config, custom_generate=method, **further)
        return trim_completions(ids[:, inputs["input_ids"].size(1) :], self.stop_token_ids)

    def _shared_prefill(self, prompts: Sequence[EncodedPrompt]) -> SharedPrefillGenerate:
        return SharedPrefillGenerate(prompt_indices(prompts), self.decoding, skips_hooks=is_deepspeed_zero3_enabled())
