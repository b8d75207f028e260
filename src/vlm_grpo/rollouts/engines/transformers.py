"""Completions by transformers in the training process: unique prompts are prefilled once where the cache allows it."""

from __future__ import annotations

import copy
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
from vlm_grpo.rollouts.engines.base import Generation
from vlm_grpo.rollouts.engines.shared_prefill import (
    Decoding,
    SharedPrefillGenerate,
    left_to_generate,
    prompt_batch,
    prompt_indices,
    trim_completions,
)
from vlm_grpo.shared_prefix.vision_cache import with_features


class TransformersEngine:
    """Generates completions of encoded prompts with the model that is trained.

    Args:
        policy: returns the model as the accelerator has wrapped it.
        config: how tokens are chosen, and how many.
        options: what of it was set for this run, TRL's `generation_kwargs`.
        accelerator: of the run.
        args: of the training.
        backend: gathers parameters that FSDP shards.
        place: moves the prompts' tensors to the device.
        pad_token_id: pads prompts on the left.
        eos_token_ids: end a completion.
        shares_prefill: whether each unique prompt goes through the model once, where the settings allow it.
        cache_features: runs the vision tower once for each image of some prompts; None where features change.
        is_sharded: whether parameters are sharded over processes.
    """

    needs_whole_groups = False
    decoding: Decoding | None = None  # how the tokens after a prefill are computed; None: as suits the device

    def __init__(
        self,
        *,
        policy: Callable[[], nn.Module],
        config: GenerationConfig,
        options: Mapping[str, Any],
        accelerator: Accelerator,
        args: Any,
        backend: DistributedBackend,
        place: Callable[[Mapping[str, Any]], dict[str, Any]],
        pad_token_id: int,
        eos_token_ids: Sequence[int],
        shares_prefill: bool,
        cache_features: Callable[[nn.Module, Sequence[EncodedPrompt]], None] | None,
        is_sharded: bool,
    ) -> None:
        self.policy, self.config, self.options = policy, config, options
        self.accelerator, self.args, self.backend, self.place = accelerator, args, backend, place
        self.pad_token_id, self.eos_token_ids, self.shares_prefill = pad_token_id, eos_token_ids, shares_prefill
        self.cache_features, self.is_sharded = cache_features, is_sharded

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt; rows that continue the same prompt share its object.

        Args:
            prompts: one for each completion.
            max_new_tokens: of a completion; None is the limit of the run.
            is_greedy: whether the most likely token is taken instead of a sampled one.
        """
        config, options = copy.deepcopy(self.config), dict(self.options)
        if max_new_tokens is not None:
            config.max_new_tokens = options["max_new_tokens"] = max_new_tokens
        if is_greedy:
            config.do_sample = False
        method = self._shared_prefill(prompts) if self._repeats_cache(config) else None
        rows = prompts if method is None else unique_prompts(prompts)
        inputs = self.place(prompt_batch(rows, self.pad_token_id))
        wrapped = self.policy()
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
        return Generation(trim_completions(ids[:, inputs["input_ids"].size(1) :], self.eos_token_ids))

    def _repeats_cache(self, config: GenerationConfig) -> bool:
        """Return whether settings leave decoding to a loop that repeats the cache, and no process waits for it."""
        is_gathered = not is_deepspeed_zero3_enabled() or self.args.ds3_gather_for_generation
        is_dynamic = config.cache_implementation in (None, "dynamic")
        return self.shares_prefill and is_gathered and is_dynamic and not left_to_generate(config)

    def _shared_prefill(self, prompts: Sequence[EncodedPrompt]) -> SharedPrefillGenerate:
        # Gathered parameters lie elsewhere every time: a captured step would read the old places.
        is_captured = self.accelerator.device.type == "cuda" and not self.is_sharded
        decoding = self.decoding or ("captured" if is_captured else "dynamic")
        return SharedPrefillGenerate(prompt_indices(prompts), decoding, is_alone=is_deepspeed_zero3_enabled())
