"""Completions by transformers, in training and evaluation; unique prompts are prefilled once where possible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from torch import nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.integrations import is_deepspeed_zero3_enabled

from vlm_grpo.model_utils import method_of
from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import EncodedPrompt, unique_prompts
from vlm_grpo.rollouts.engines.engine import Generation, NamedTensor
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
        open_model: returns a context with the model to generate with: unwrapped, with all of its parameters on this
            process, and without gradients.
        config: how tokens are chosen, and how many.
        to_device: moves the prompts' tensors to the device.
        pad_token_id: pads prompts on the left.
        stop_token_ids: end a completion.
        shares_prefill: whether each unique prompt is prefilled once, where the settings allow it. Finished rows then
            leave the batch: a logits processor with a state for each row needs False.
        cache_features: runs the vision tower once for each image of some prompts; None where features change.
        decoding: how the tokens after a shared prefill are computed.
    """

    needs_whole_groups = False
    has_own_weights = False

    def __init__(
        self,
        *,
        open_model: Callable[[], AbstractContextManager[nn.Module]],
        config: GenerationConfig,
        to_device: Callable[[ModelInputs], ModelInputs],
        pad_token_id: int,
        stop_token_ids: Sequence[int],
        shares_prefill: bool = False,
        cache_features: Callable[[nn.Module, Sequence[EncodedPrompt]], None] | None = None,
        decoding: Decoding = "dynamic",
    ) -> None:
        self.open_model, self.config, self.to_device, self.decoding = open_model, config, to_device, decoding
        self.pad_token_id, self.stop_token_ids = pad_token_id, list(stop_token_ids)
        self.shares_prefill, self.cache_features = shares_prefill, cache_features

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        max_new_tokens: int | None = None,
        is_greedy: bool = False,
        logits_processor: LogitsProcessorList | None = None,
    ) -> Generation:
        """Return one completion of each prompt, up to and including its stop token.

        Args:
            prompts: one for each completion; completions of the same prompt share its object.
            max_new_tokens: of a completion; None is the limit of the settings.
            is_greedy: whether the most likely token is taken instead of a sampled one.
            logits_processor: further processors.
        """
        config = copy.deepcopy(self.config)
        if max_new_tokens is not None:
            config.max_new_tokens = max_new_tokens
        if is_greedy:
            config.do_sample = False
        method = self._shared_prefill(prompts) if self._repeats_cache(config) else None
        rows = prompts if method is None else unique_prompts(prompts)
        inputs = self.to_device(prompt_batch(rows, self.pad_token_id))
        with self.open_model() as model:
            if self.cache_features is not None:
                self.cache_features(model, prompts)
                inputs = with_features(dict(inputs), rows)
            further = {} if logits_processor is None else {"logits_processor": logits_processor}
            ids = method_of(model, "generate")(**inputs, generation_config=config, custom_generate=method, **further)
        return Generation(trim_completions(ids[:, inputs["input_ids"].size(1) :], self.stop_token_ids))

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Do nothing: the model is the policy itself."""

    def close(self) -> None:
        """Do nothing: the model is the trainer's."""

    def _repeats_cache(self, config: GenerationConfig) -> bool:
        """Return whether the settings leave decoding to a loop that repeats the cache of a prompt."""
        is_dynamic = config.cache_implementation in (None, "dynamic")
        return self.shares_prefill and is_dynamic and not unsupported_options(config)

    def _shared_prefill(self, prompts: Sequence[EncodedPrompt]) -> SharedPrefillGenerate:
        return SharedPrefillGenerate(prompt_indices(prompts), self.decoding, skips_hooks=is_deepspeed_zero3_enabled())
