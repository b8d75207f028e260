"""Completions by transformers in the training process: unique prompts are prefilled once where the cache allows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

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
    """Generates completions of encoded prompts with the model that is trained.

    Args:
        accelerator: of the run.
        args: of the training.
        backend: gathers parameters that FSDP shards.
        to_device: moves the prompts' tensors to the device.
        pad_token_id: pads prompts on the left.
        eos_token_ids: end a completion.
        unsupported_reason: why the model's cache cannot be repeated for the completions of a prompt; None where it can.
        cache_features: runs the vision tower once for each image of some prompts; None where features change.
        is_sharded: whether parameters are sharded over processes.
    """

    decoding: Decoding | None = None  # how the tokens after a prefill are computed; None: as suits the device

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        args: Any,
        backend: DistributedBackend,
        to_device: Callable[[Mapping[str, Any]], dict[str, Any]],
        pad_token_id: int,
        eos_token_ids: Sequence[int],
        unsupported_reason: str | None,
        cache_features: Callable[[nn.Module, Sequence[EncodedPrompt]], None] | None,
        is_sharded: bool,
    ) -> None:
        self.accelerator, self.args, self.backend, self.to_device = accelerator, args, backend, to_device
        self.pad_token_id, self.eos_token_ids = pad_token_id, eos_token_ids
        self.unsupported_reason, self.cache_features, self.is_sharded = unsupported_reason, cache_features, is_sharded

    def repeats_cache(self, config: GenerationConfig) -> bool:
        """Return whether the model's cache can be repeated, and the settings leave decoding to a loop that does so."""
        is_dynamic = config.cache_implementation in (None, "dynamic")
        return is_dynamic and self.unsupported_reason is None and not unsupported_options(config)

    def generate(
        self,
        wrapped: nn.Module,
        prompts: Sequence[EncodedPrompt],
        config: GenerationConfig,
        options: Mapping[str, Any],
        *,
        shares_prefill: bool = True,
    ) -> list[list[int]]:
        """Return the tokens of one completion of each prompt; rows that continue the same prompt share its object.

        Args:
            wrapped: the policy as the accelerator has wrapped it.
            prompts: one for each completion.
            config: how tokens are chosen, and how many.
            options: what of it was set for this run, TRL's `generation_kwargs`.
            shares_prefill: whether each unique prompt may go through the model once.
        """
        method = self._shared_prefill(prompts) if shares_prefill and self.repeats_cache(config) else None
        rows = prompts if method is None else unique_prompts(prompts)
        inputs = self.to_device(prompt_batch(rows, self.pad_token_id))
        unwrapped = unwrap_model_for_generation(
            wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=options,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )
        whole = self.backend.summon_full_params(wrapped, recurse=False)
        with unwrapped as model, torch.no_grad(), whole:
            if self.cache_features is not None:
                self.cache_features(model, prompts)
                inputs = with_features(inputs, rows)
            ids = model.generate(**inputs, generation_config=config, custom_generate=method)
        return trim_completions(ids[:, inputs["input_ids"].size(1) :], self.eos_token_ids)

    def _shared_prefill(self, prompts: Sequence[EncodedPrompt]) -> SharedPrefillGenerate:
        # Gathered parameters lie elsewhere every time: a captured step would read the old places.
        is_captured = self.accelerator.device.type == "cuda" and not self.is_sharded
        decoding = self.decoding or ("captured" if is_captured else "dynamic")
        return SharedPrefillGenerate(prompt_indices(prompts), decoding, skips_hooks=is_deepspeed_zero3_enabled())
