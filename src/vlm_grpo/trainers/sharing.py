"""Where TRL's trainers meet the fast path (`hotpath/`): which path a rollout and a pass take, and the switch back.

Mixed into `VLMTrainerMixin`, which says what the rows at hand are (`_samples`, `_media_anywhere`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from vlm_grpo.rollouts.batch import prompt_groups, shuffle_groups
from vlm_grpo.rollouts.encoder import MEDIA_KINDS, EncodedPrompt, collate_visual, unique_prompts
from vlm_grpo.rollouts.engines.shared_prefill import (
    Decoding,
    SharedPrefillGenerate,
    left_to_generate,
    prompt_batch,
    prompt_indices,
    trim_completions,
)
from vlm_grpo.shared_prefix.compat import SharedPrefixState, mean_difference, tolerance, validate_generation
from vlm_grpo.shared_prefix.packed_logprobs import Packing, backbone, packed_logprobs, prompt_positions
from vlm_grpo.shared_prefix.vision_cache import cache_features, is_frozen, visual_inputs, with_features
from vlm_grpo.shared_prefix.zero_advantage import ZeroAdvantageRows, correct_entropy
from vlm_grpo.trainers.logprobs import TokenLogprobs, padded_logprobs
from vlm_grpo.trainers.step_retry import StepRepeating


class PromptSharing(StepRepeating):
    """Sampling and scoring with each prompt passed through the model once, where model and settings allow it."""

    _samples: list[EncodedPrompt]
    _media_anywhere: list[bool]
    _keeps_features: bool  # whether image features stay the same during a run and every process has the whole tower
    _generates_logps: bool  # whether TRL's generation also gives the sampler's log-probabilities
    decoding: Decoding | None = None  # how the tokens after a prefill are computed; None: as suits the device
    _keep_values: Callable[[Tensor], None] | None = None  # set where the policy has a value head

    def _start_sharing(self, mode: str) -> None:
        """Decide what this run's models can share; called once, when they are complete."""
        models = [self.accelerator.unwrap_model(each) for each in (self.model, self.ref_model) if each is not None]
        self._sharing = SharedPrefixState(mode, models)
        self._sampling_refusal = None if self._is_stock else validate_generation(models[0])
        if not self.use_vllm:
            self._sample_with_cache()
            if mode != "off" and self._sampling_refusal is not None:
                self._sharing.give_up("sampling", self._sampling_refusal)
        self._silent: ZeroAdvantageRows | None = None
        self._start_repeating()
        # Asked once: with its adapter switched off, as for the reference, every model looks frozen.
        self._keeps_features = mode != "off" and not self._is_sharded and is_frozen(models[0])

    def _prompts_for_vllm(self) -> list[EncodedPrompt]:
        """The rows' prompts; in the same process each group's only once, its completions asked for as `n`.

        Its server gets unique prompts from TRL. With tensor parallelism TRL counts one completion for each prompt.
        """
        if self.vllm_mode != "colocate":
            return self._samples
        groups = prompt_groups(self._samples)
        sizes = {len(group) for group in groups}
        is_shared = self._sharing.mode != "off" and len(sizes) == 1 and self.vllm_tensor_parallel_size == 1
        self.vllm_generation.generation_kwargs["n"] = sizes.pop() if is_shared else 1
        return [self._samples[group[0]] for group in groups] if is_shared else self._samples

    def _sample_with_cache(self) -> None:
        """Let no `use_cache: false` of the checkpoint reach sampling; one in --generation_kwargs does."""
        if "use_cache" not in (self.args.generation_kwargs or {}):
            self.generation_config.use_cache = True
            self.generation_kwargs["use_cache"] = True  # laid over it again

    @property
    def _prefills_once(self) -> bool:
        """Whether completions are sampled here, from a cache that can be repeated and no other process waits for."""
        if self._is_stock or self._sharing.mode == "off" or self.args.use_transformers_continuous_batching:
            return False
        is_gathered = not is_deepspeed_zero3_enabled() or self.args.ds3_gather_for_generation
        return is_gathered and self._repeats_cache

    @property
    def _repeats_cache(self) -> bool:
        """Whether the model's cache can be repeated, and the settings leave sampling to a loop that does so."""
        is_dynamic = self.generation_config.cache_implementation in (None, "dynamic")
        return is_dynamic and self._sampling_refusal is None and not left_to_generate(self.generation_config)

    def _remember(self, model: nn.Module) -> None:
        with self.accelerator.autocast():
            cache_features(
                backbone(model), unique_prompts(self._samples), lambda tensors: Trainer._prepare_inputs(self, tensors)
            )

    @property
    def _is_sharded(self) -> bool:
        return is_deepspeed_zero3_enabled() or self.is_fsdp_enabled

    def _generate_from_unique_prompts(self) -> list[list[int]]:
        """Completions of the rows at hand; each prompt goes through the model once, where its cache can be repeated."""
        method = self._decoding_method() if self._repeats_cache else None
        prompts = self._samples if method is None else unique_prompts(self._samples)
        inputs = Trainer._prepare_inputs(self, prompt_batch(prompts, self._tokenizer.pad_token_id))
        model_for_sampling = unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )
        whole = self._dist.summon_full_params(self.model_wrapped, recurse=False)
        with model_for_sampling as model, torch.no_grad(), whole:
            if self._keeps_features:
                self._remember(model)
                inputs = with_features(inputs, prompts)
            ids = model.generate(**inputs, generation_config=self.generation_config, custom_generate=method)
        return trim_completions(ids[:, inputs["input_ids"].size(1) :], self.eos_token_ids)

    def _decoding_method(self) -> SharedPrefillGenerate:
        # Gathered parameters lie elsewhere every time: a captured step would read the old places.
        is_captured = self.accelerator.device.type == "cuda" and not self._is_sharded
        decoding = self.decoding or ("captured" if is_captured else "dynamic")
        return SharedPrefillGenerate(prompt_indices(self._samples), decoding, is_alone=is_deepspeed_zero3_enabled())

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's, but completions of one prompt stay together when a rollout is shuffled and cut into micro-batches."""
        if not (self.model.training and self._sharing.is_on):
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        is_due = self._step % (steps * self.num_iterations) == 0 and not self._is_repeating
        if is_due or self._buffered_inputs is None:
            rollout = shuffle_groups(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = split_tensor_dict(rollout, steps)
        return self._buffered_inputs[self._step % steps]

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._begin_loss()
        self._samples = inputs.get("samples", [])
        self._media_anywhere = [bool(inputs.get(f"{kind}_anywhere", False)) for kind in MEDIA_KINDS]
        if not self._skips_silent:
            return super()._compute_loss(model, inputs)
        silence = self._silent = ZeroAdvantageRows(inputs)
        loss = super()._compute_loss(model, inputs)
        self._silent = None
        if self._sharing.is_on:  # it may just have been given up
            metrics = self._metrics["train" if self.model.training else "eval"]
            correct_entropy(metrics, self.accelerator.reduce(silence.entropy_stats, reduction="sum"))
        return loss

    @property
    def _skips_silent(self) -> bool:
        """Whether a row without advantage contributes nothing to the loss: no KL, no entropy term beside it."""
        if not self._sharing.is_on or self._is_stock or self.aux_loss_enabled or self._keep_values is not None:
            return False
        kl_in_loss = self.beta != 0.0 and self._generates_logps  # RLOO has it in the reward
        needs_entropy = getattr(self, "_entropy_bonus_enabled", False) or getattr(self, "use_adaptive_entropy", False)
        return not kl_in_loss and not needs_entropy and getattr(self, "top_entropy_quantile", 1.0) == 1.0

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **visual: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._is_stock:
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **visual,
            )
        if self._keeps_features:  # a rollout that comes from a checkpoint has none yet
            self._remember(self.accelerator.unwrap_model(self.model))
        common = {
            "completion": logits_to_keep,
            "place": lambda tensors: Trainer._prepare_inputs(self, tensors),
            "autocast": self.accelerator.autocast,
            "blanks": self._blanks(always=self._silent is not None),
            "visual": self._visual,
        }
        wanted = {"chunk": batch_size or input_ids.size(0), "compute_entropy": compute_entropy}
        wanted["on_values"] = None if model is self.ref_model else self._keep_values
        rows = (self._samples, input_ids, attention_mask)
        if self._sharing.is_on and not compute_aux_loss:  # the router's loss counts every token of every row
            if not self._sharing.is_checked:
                self._check_sharing(model, *rows, **common)
            if self._sharing.is_on:
                silent = None if self._silent is None else self._silent.rows.tolist()
                scores = self._packed_scores(model, *rows, **common, **wanted, packing=self._packing(), silent=silent)
                return scores if self._silent is None else self._silent.completed(scores)
        return padded_logprobs(model, *rows, **common, **wanted, compute_aux_loss=compute_aux_loss)

    def _packed_scores(
        self, model: nn.Module, samples: list[EncodedPrompt], *rows: Tensor, **options: Any
    ) -> TokenLogprobs:
        """With smaller forwards where memory runs out; a pass with gradients is for `training_step` to take again."""
        while True:
            try:
                return packed_logprobs(model, samples, *rows, **options)
            except torch.OutOfMemoryError as error:
                if torch.is_grad_enabled() or not self._is_alone:
                    raise
                self._cutting.halve(len(samples), error)

    def _visual(self, samples: list[EncodedPrompt]) -> dict[str, Any]:
        """Visual forward arguments of some rows, or of the prompts of a packed one."""
        # Where parameters are sharded, processes have to gather tower and embedding in the same order.
        if self._sharing.mode == "off" or self._is_sharded:
            return collate_visual(samples)
        return visual_inputs(self.accelerator.unwrap_model(self.model), samples)

    def _packing(self) -> Packing:
        model = self.accelerator.unwrap_model(self.model)
        budget = getattr(self.args, "max_tokens_per_forward", None)
        return Packing(lambda sample: prompt_positions(model, sample), budget, self._agree, self._cutting)

    def _agree(self, wanted: int, groups: int) -> tuple[int, int]:
        """The most forwards that a process wants, and the fewest groups that one has."""
        both = self.accelerator.gather(torch.tensor([[wanted, groups]], device=self.accelerator.device))
        return both[:, 0].max().item(), both[:, 1].min().item()

    def _check_sharing(
        self, model: nn.Module, samples: list[EncodedPrompt], input_ids: Tensor, attention_mask: Tensor, **common: Any
    ) -> None:
        """Score a few rows on both paths, once; all processes go on or leave the fast path together."""
        few = slice(0, 2)
        rows = (samples[few], input_ids[few], attention_mask[few])
        was_training = model.training
        model.eval()
        with torch.no_grad():
            plain = padded_logprobs(model, *rows, **common, chunk=2).logps
            fast = packed_logprobs(model, *rows, **common, chunk=2, packing=self._packing()).logps
        model.train(was_training)
        difference = mean_difference(plain, fast, attention_mask[few, -common["completion"] :])
        worst = self.accelerator.gather(torch.tensor([difference], device=input_ids.device)).max().item()
        self._sharing.settle(worst, tolerance(plain.dtype, self.accelerator.mixed_precision))

    def _blanks(self, always: bool = False) -> dict[str, EncodedPrompt]:
        """A blank prompt for each kind of media that some process has: all run the same modules in the same order.

        With one process `always` gives them too, so that a tower whose rows are left out has a gradient of 0.
        """
        if self._keeps_features or (self.accelerator.num_processes == 1 and not always):
            return {}
        return {kind: self.encoder.blank(kind) for n, kind in enumerate(MEDIA_KINDS) if self._media_anywhere[n]}
