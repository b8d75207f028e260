"""The one mixin over TRL's trainers: every method of TRL that this package overrides is here, and only here.

A rollout: rows -> `PromptEncoder` (one prompt per row, shared within a group) -> an engine or the environments complete
it -> `LogprobModel` scores it -> `RewardScorer` and TRL's reward functions -> the algorithm's advantages ->
`RolloutLogger`. The loss is TRL's or the algorithm's, on log-probabilities from `LogprobModel`. Each part owns its
state; a rollout travels as a `Rollout` (what was asked and sampled) and a `RolloutBatch` (its tensors).
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_tensor_dict, use_adapter

from vlm_grpo.algorithms import Advantages, Algorithm, ScoredRollout, configured_algorithm
from vlm_grpo.algorithms.algorithm import MicroStep, RunContext
from vlm_grpo.algorithms.demonstration_encoder import validate_demonstrations
from vlm_grpo.algorithms.kl_controller import KLController
from vlm_grpo.algorithms.losses import LossAverage
from vlm_grpo.algorithms.trl_advantages import grpo_advantages, normalized_advantages, rloo_advantages
from vlm_grpo.algorithms.uft import with_hint, without_hints
from vlm_grpo.answer_space import answer_space
from vlm_grpo.io import write_whole
from vlm_grpo.model_utils import (
    for_language_model,
    freeze_parts,
    freeze_vision,
    limit_images,
    name_experts,
    placeholder_ids,
)
from vlm_grpo.records import ModelInputs, Row, required
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.collector import RolloutCollector
from vlm_grpo.rollouts.encoder import (
    MEDIA_KINDS,
    TOOLS_COLUMN,
    EncodedPrompt,
    PromptEncoder,
    drop_images,
)
from vlm_grpo.rollouts.engines.engine import Generation, RolloutEngine
from vlm_grpo.rollouts.engines.policy_weights import PolicyWeights
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.summaries import DEFAULT
from vlm_grpo.rollouts.engines.table import EngineRun, engine_entry
from vlm_grpo.rollouts.engines.transformers import TransformersEngine
from vlm_grpo.rollouts.engines.trl import TRLEngine
from vlm_grpo.rollouts.engines.weight_sync import WeightSync
from vlm_grpo.rollouts.env_pool import EnvPool, pop_env_pool
from vlm_grpo.rollouts.importance_sampling import (
    MEAN_DIFFERENCE,
    DifferenceCheck,
    difference_metrics,
    importance_ratio,
    ratio_metrics,
)
from vlm_grpo.rollouts.logged_rollout import LoggedRollout, SampleLocation, local_rollout, plain_messages
from vlm_grpo.rollouts.messages import MEDIA_COLUMNS
from vlm_grpo.rollouts.multi_turn import (
    EpisodeLimits,
    MultiTurnRollout,
)
from vlm_grpo.rollouts.prompt_lengths import drop_long_prompts
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.rollouts.rollout import Rollout
from vlm_grpo.rollouts.video import patch_glm4v_placeholder_mask, thumbnails
from vlm_grpo.shared_prefix.compat import SharedPrefixState, validate_generation
from vlm_grpo.shared_prefix.oom import ForwardSplitter
from vlm_grpo.shared_prefix.packed_logprobs import TokenLogprobs
from vlm_grpo.shared_prefix.vision_cache import has_frozen_vision
from vlm_grpo.shared_prefix.zero_advantage import ZeroAdvantageRows, correct_entropy
from vlm_grpo.trainers.checkpoints import CheckpointParts, SavedPart, resumable
from vlm_grpo.trainers.completion_log import debug_log
from vlm_grpo.trainers.critic import ValueModel, check_value_model
from vlm_grpo.trainers.dynamic_sampling import DynamicSampler, check_dynamic_sampling
from vlm_grpo.trainers.fsdp import FullParamsBackend, model_for_generation
from vlm_grpo.trainers.image_columns import decode_images, disable_image_decoding
from vlm_grpo.trainers.logprobs import LogprobModel, RolloutLogprobs, ScoredRows, ScoringPass
from vlm_grpo.trainers.model_card import NAME, Card, CardFacts, settings_of
from vlm_grpo.trainers.no_signal import NoSignal
from vlm_grpo.trainers.preemption import Preemption
from vlm_grpo.trainers.reference import SyncedReference, arguments_with_reference, check_reference
from vlm_grpo.trainers.resume import check_fit, check_optimizer, has_full_weights, load_full_weights
from vlm_grpo.trainers.reward_functions import by_name, named_rewards
from vlm_grpo.trainers.reward_scorer import RewardInputs, RewardScorer
from vlm_grpo.trainers.rollout_flags import read_options, resolve_engine
from vlm_grpo.trainers.rollout_logger import RolloutLogger
from vlm_grpo.trainers.rollout_state import RolloutState
from vlm_grpo.trainers.sampler import EpochSampler, infinite
from vlm_grpo.trainers.saving import PARTIAL, writing_checkpoint, writing_model
from vlm_grpo.trainers.step_retry import StepRetry, StepStart
from vlm_grpo.trainers.value_head import is_value_parameter

# What TRL's own pass over a rollout takes of it besides tokens; this package's finds it with the prompts.
VISUAL_KEYS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin
    from trl import GRPOTrainer

    from vlm_grpo.trainers.config import VLMGRPOConfig

    class _Arguments(VLMGRPOConfig):
        """The arguments with the values that `__post_init__` has filled in."""

        output_dir: str
        steps_per_generation: int
        max_completion_length: int
        chat_template_kwargs: dict[str, object] | None
        gradient_checkpointing_kwargs: dict[str, object] | None

    class _TRLTrainer(GRPOTrainer):
        """TRL's trainer as the mixin's methods find it, once it is complete; what RLOO's alone has stands here too."""

        args: _Arguments
        model: PreTrainedModel
        processing_class: ProcessorMixin
        num_generations: int
        num_generations_eval: int
        max_completion_length: int
        chat_template_kwargs: dict[str, object]
        train_dataset: Dataset
        optimizer: torch.optim.Optimizer
        reward_clip_range: tuple[float, float] | None
        normalize_advantages: bool
        pad_to_multiple_of: int | None
        _logs: dict[str, Any]
        _buffered_inputs: list[ModelInputs] | None  # type: ignore[assignment]  # None until the first rollout

else:
    _TRLTrainer = object


class VLMTrainerMixin(_TRLTrainer):
    """Mixin over `GRPOTrainer` or `RLOOTrainer`: images decoded, processed and moved once, in any mixture of rows."""

    config_class: type  # made when no `args` are given
    _is_rloo: bool  # TRL's RLOO has the KL in the reward, ratios of whole completions, and no mask for tools' tokens
    card_facts = CardFacts()  # set by the command line
    evaluated: Mapping[str, Any] = {}  # metrics of the newest evaluation, set by evaluation.callback.GreedyEvaluation
    evaluate_greedily: Callable[[], dict[str, float]] | None = None  # set by evaluation.callback.GreedyEvaluation
    watch_rollout: Callable[[LoggedRollout], None] | None = None  # set by evaluation.live.LiveReport, on one process

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        options |= by_name(super().__init__, rest)
        demonstrations, dataset = options.pop("demonstrations", None), options.get("train_dataset")
        data = {"rows": dataset, "demonstrations": demonstrations}
        source = {"model": model, "processor": options.get("processing_class")}
        name, config = configured_algorithm(args)
        validate_demonstrations(name, config.family, args, **data, **source)
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = self.config_class(f"{name.rstrip('/').split('/')[-1]}-{self._tag_names[-1].upper()}")
        resolve_engine(args)
        if options.get("rollout_func") is not None:
            args.use_vllm = args.rollout_engine == "vllm"  # TRL's own, which the function is handed
        self.env_pool: EnvPool | None = pop_env_pool(options, args)
        own_rewards = self.env_pool.rewards() if self.env_pool else []
        reward_funcs, weights = named_rewards(reward_funcs, args, own_rewards)
        if weights is not None:
            args.reward_weights = weights
        for name in ("train_dataset", "eval_dataset"):
            if options.get(name) is not None:
                options[name] = disable_image_decoding(options[name])
        if options.get("peft_config") is not None:
            options["peft_config"] = for_language_model(options["peft_config"])
        handler = signal.getsignal(signal.SIGTERM)
        beta = args.beta
        if getattr(args, "kl_reward_coef", 0.0) and not beta:
            args = arguments_with_reference(args)
        super().__init__(model, reward_funcs, args, **options)
        self.beta = self.args.beta = beta  # of the KL in the loss
        self._take_over_preemption(handler)
        self._prepare_model()
        self._build_parts()
        self._build_rollouts()
        self._prepare_rows()
        self._build_algorithm(demonstrations)
        self.dynamic_sampler: DynamicSampler | None = None
        if rounds := getattr(self.args, "dynamic_sampling", 0):
            check_dynamic_sampling(self, self._has_rollout_func)
            pad = self._tokenizer.pad_token_id
            self.dynamic_sampler = DynamicSampler(rounds, self.train_dataset, self.args, pad, self.ranks, self.encoder)
        self._build_checkpoint_parts()

    def _take_over_preemption(self, handler: Any) -> None:
        self.preemption = Preemption(self.accelerator, is_enabled=self.args.enable_jit_checkpoint)
        if self.args.enable_jit_checkpoint:  # transformers' own has taken the signal
            self.remove_callback(JITCheckpointCallback)
            signal.signal(signal.SIGTERM, handler)

    def _prepare_model(self) -> None:
        """Freeze what is not trained, limit images, and let no placeholder be sampled."""
        if getattr(self.args, "freeze_vision_modules", False):
            freeze_vision(self.model)
        parts: list[str] = getattr(self.args, "frozen_parts", list)()
        if parts:
            freeze_parts(self.model, parts)
        if self._is_vlm:
            limit_images(self.processing_class, self.model.config, self.args)
            name_experts(self.model)
            self._suppress_tokens(placeholder_ids(self.model.config, self.processing_class))
            patch_glm4v_placeholder_mask(self.model, self.ref_model)

    def _build_parts(self) -> None:
        """Make the parts that encode and score; called once, when the models are complete."""
        self._dist = FullParamsBackend(self.accelerator)
        check_reference(self.args, is_sharded=self._dist.is_zero3 or self._dist.is_fsdp)
        self.ranks = Ranks(self.accelerator)
        self.encoder = PromptEncoder(self.processing_class, self.chat_template_kwargs)
        self._rows = ScoredRows([], [False for _ in MEDIA_KINDS])  # of the micro-batch whose loss is computed
        log = debug_log(os.environ, self.accelerator.process_index)
        self._answer_space = answer_space(self.model.config.model_type, getattr(self.args, "answer_space", None))
        names, weights = self.reward_func_names, self.reward_weights
        self.scorer = RewardScorer(self.encoder, self._answer_space, names, weights, self.ranks, log)
        can_share = self._is_vlm and not self._has_rollout_func
        mode = getattr(self.args, "shared_prefix", "auto") if can_share else "off"
        models = [self.accelerator.unwrap_model(each) for each in (self.model, self.ref_model) if each is not None]
        self.shared_prefix, self.splitter = SharedPrefixState(mode, models), ForwardSplitter()
        is_sharded = is_deepspeed_zero3_enabled() or self.is_fsdp_enabled
        is_single = self.ranks.count == 1 and not self.is_deepspeed_enabled and not self.is_fsdp_enabled
        self.retry = StepRetry(self.shared_prefix, self.splitter, is_single)
        # Asked once: with its adapter switched off, as for the reference, every model looks frozen.
        caches_features = mode != "off" and not is_sharded and has_frozen_vision(models[0])
        self.logprobs = LogprobModel(
            shared_prefix=self.shared_prefix,
            splitter=self.splitter,
            encoder=self.encoder,
            ranks=self.ranks,
            to_device=self._to_device,
            policy=lambda: self.accelerator.unwrap_model(self.model),
            budget=getattr(self.args, "max_tokens_per_forward", None),
            is_sharded=is_sharded,
            is_single_process=is_single,
            caches_features=caches_features,
        )
        self.engine = self._build_engine(mode, models[0], caches_features, is_sharded)
        self.weight_sync = WeightSync(self.engine, self._policy_weights)
        self.difference_check = DifferenceCheck(self._compute_dtype(models[0]))
        # TRL's loss takes the ratios of importance sampling where this is set.
        self.use_vllm = self.use_vllm or self.engine.has_own_weights
        self.logger = RolloutLogger(self.ranks, self._logs, self._pending_metrics, self._pending_extra_logs, names)

    def _build_engine(self, mode: str, model: nn.Module, caches_features: bool, is_sharded: bool) -> RolloutEngine:
        if self.args.use_transformers_continuous_batching or self._has_rollout_func:
            return TRLEngine(
                self._generate_by_trl,
                lambda: self.num_generations if self.model.training else self.num_generations_eval,
            )
        make = engine_entry(self.args.rollout_engine or DEFAULT).make
        if make is not None:
            return make(self._engine_run(model))
        self._generate_with_cache()
        reason = validate_generation(model)
        if mode != "off" and reason is not None:
            self.shared_prefix.report_unsupported("sampling", reason)
        is_gathered = not is_deepspeed_zero3_enabled() or self.args.ds3_gather_for_generation
        # Gathered parameters lie elsewhere every time: a captured step would read the old addresses.
        is_captured = self.accelerator.device.type == "cuda" and not is_sharded
        return TransformersEngine(
            open_model=self._open_for_generation,
            config=self.generation_config,
            to_device=self._to_device,
            pad_token_id=self._tokenizer.pad_token_id,
            stop_token_ids=self.eos_token_ids,
            shares_prefill=mode != "off" and reason is None and is_gathered,
            cache_features=self.logprobs.cache_features if caches_features else None,
            decoding="captured" if is_captured else "dynamic",
        )

    def _policy_weights(self) -> PolicyWeights:
        return PolicyWeights(self.accelerator.unwrap_model(self.model), self._dist, is_value_parameter)

    def _engine_run(self, model: nn.Module) -> EngineRun:
        """Return what an engine with weights of its own is made from."""
        args = self.args
        limit = getattr(args, "max_prompt_length", None)
        lengths = None if limit is None else limit + self.max_completion_length
        return EngineRun(
            model=model,
            model_name=str(getattr(model.config, "_name_or_path", "") or ""),
            processor=self.processing_class,
            encoder=self.encoder,
            sampling=self._sampling_settings(),
            dtype=self._compute_dtype(model),
            ranks=self.ranks,
            folder=Path(args.rollout_folder or Path(args.output_dir) / "rollout_engine"),
            seed=args.seed,
            max_model_length=args.vllm_max_model_length or lengths,
            max_sequences=args.per_device_train_batch_size * args.vllm_tensor_parallel_size * args.steps_per_generation,
            urls=args.rollout_url or (),
            wait=args.rollout_wait,
            transfer=args.rollout_transfer,
            nccl_port=args.vllm_group_port,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            memory_fraction=args.vllm_gpu_memory_utilization,
            sleeps=args.vllm_enable_sleep_mode,
            implementation=args.vllm_model_impl,
            trusts_remote_code=bool(args.trust_remote_code),
            options=read_options(args.rollout_options) or {},
        )

    def _sampling_settings(self) -> SamplingSettings:
        return SamplingSettings(
            max_new_tokens=self.max_completion_length,
            stop_token_ids=self.eos_token_ids,
            suppressed_token_ids=placeholder_ids(self.model.config, self.processing_class) if self._is_vlm else (),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            regex=self.args.vllm_structured_outputs_regex,
            options=cast("dict[str, object]", self.args.generation_kwargs or {}),
        )

    def _compute_dtype(self, model: nn.Module) -> torch.dtype:
        """Return the precision of the policy's forward passes, so that an engine samples what the trainer scores."""
        of_autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        return of_autocast or next(each.dtype for each in model.parameters() if each.is_floating_point())

    def _generate_by_trl(
        self, ids: list[list[int]], images: list[Any] | None, fields: dict[str, Any], count: int
    ) -> Generation:
        if self._is_rloo:
            generate: Callable[..., list[list[int]]] = self._generate_single_turn  # RLOO's takes no count
            return Generation(generate(ids, images, fields))
        return Generation(*self._generate_single_turn(ids, images, fields, count))

    def _open_for_generation(self) -> AbstractContextManager[nn.Module]:
        return model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )

    def _to_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return Trainer._prepare_inputs(self, dict(tensors))

    def _build_rollouts(self) -> None:
        """Make the parts that sample completions.

        Raises:
            ValueError: this run cannot have tools.
        """
        self.multi_turn = None if self.env_pool is None else self._build_multi_turn(self.env_pool)
        self.collector = RolloutCollector(
            self.encoder,
            self.engine,
            self.env_pool,
            self.multi_turn,
            self._episode_limits,
            self.ranks,
            pad_token_id=self._tokenizer.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
            masks_truncated=self.mask_truncated_completions,
            facts={"answer_space": self._answer_space},
        )

    def _build_multi_turn(self, env_pool: EnvPool) -> MultiTurnRollout:
        if self.args.use_transformers_continuous_batching:
            raise ValueError(
                "--use_transformers_continuous_batching does not go with tools or environments, whose turns have "
                "lengths of their own; leave it out"
            )
        if getattr(self.args, "max_prompt_length", None) is not None:
            raise ValueError("--max_prompt_length cannot know what environments add to prompts; leave it out")
        template = getattr(self, "chat_template", None) or self.processing_class.chat_template
        template = template.get("default") if isinstance(template, dict) else template
        env_pool.choose_tool_parsers(self.args.tool_format, template)
        placeholders = placeholder_ids(self.model.config, self.processing_class)
        return MultiTurnRollout(self.encoder, placeholders, self.eos_token_ids[0])

    @property
    def _episode_limits(self) -> EpisodeLimits:
        # Ours, or TRL's limit where that is tighter: it counts the turns that call tools, and one more answers.
        iterations = getattr(self.args, "max_tool_calling_iterations", None)
        turns, seconds = getattr(self.args, "max_turns", 1), getattr(self.args, "tool_time_limit", 0.0)
        turns = turns if iterations is None else min(turns, iterations + 1)
        return EpisodeLimits(self.max_completion_length, turns, seconds, set(self.eos_token_ids))

    def _build_algorithm(self, demonstrations: Any) -> None:
        """Make the parts that turn rewards into a loss.

        Raises:
            ValueError: the algorithm needs what this run does not have.
        """
        name, config = configured_algorithm(self.args)
        if config.needs_greedy and (self._has_rollout_func or self.env_pool):
            raise ValueError(
                f"--algorithm {name} needs a greedy completion of each prompt, which a run with tools, environments or "
                "a rollout function does not give"
            )
        if config.family.needs_demonstrations and (self._has_rollout_func or self.env_pool is not None):
            raise ValueError(f"--algorithm {name} does not work with tools, environments or a rollout function")
        run = RunContext(
            args=self.args,
            ranks=self.ranks,
            encoder=self.encoder,
            reward_names=self.reward_func_names,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_ids=self.eos_token_ids,
            demonstration_rows=self.train_dataset if demonstrations is None else demonstrations,
        )
        self.algorithm: Algorithm = config.family(name, config, run)
        coefficient, target = getattr(self.args, "kl_reward_coef", 0.0), getattr(self.args, "kl_target", None)
        self.kl = KLController(coefficient, target, getattr(self.args, "kl_estimator", "k1"), self.ranks)
        self.critic: ValueModel | None = None
        if config.family.needs_values:
            check_value_model(self)
            kind: str = getattr(self.algorithm.options, "value_model")  # noqa: B009 - of the families with values
            self.critic = ValueModel(self.model, kind, self.args, self.ranks, self._dist.gather_params)
        loss_type, length = getattr(self, "loss_type", "grpo"), self.max_completion_length
        self.loss_average = LossAverage(loss_type, length, self.args.steps_per_generation, self.ranks.count)
        self.no_signal = NoSignal(self.accelerator.is_main_process)
        self.add_callback(self.no_signal)

    def _build_checkpoint_parts(self) -> None:
        """List what a checkpoint holds beside the Trainer's own state."""
        place = (self.args, self.encoder, self.accelerator.device)
        rollout = RolloutState(*place, read=self._current_rollout, restore=self._restore_rollout)
        synced = self.accelerator.unwrap_model(self.ref_model) if self.args.sync_ref_model else None
        reference = SyncedReference(synced, is_main=self.args.should_save)
        parts = [
            SavedPart(self.kl, self.kl.state_file),
            SavedPart(self.algorithm, self.algorithm.state_file),
            SavedPart(rollout, rollout.state_file, rollout.check_missing),
            SavedPart(reference, reference.state_file, reference.check_missing, is_weights=True),
        ]
        if self.dynamic_sampler is not None:
            parts.append(SavedPart(self.dynamic_sampler, self.dynamic_sampler.state_file))
        if self.critic is not None:
            file, check = self.critic.state_file, self.critic.check_missing
            parts.append(SavedPart(self.critic, file, check, is_weights=True))
        self.checkpoint_parts = CheckpointParts(parts, self.ranks, is_main=self.args.should_save)

    def _prepare_rows(self) -> None:
        """Drop rows with over-long prompts; begin a stream again at its end."""
        limit = getattr(self.args, "max_prompt_length", None)
        if limit is not None:
            self.train_dataset = drop_long_prompts(self.train_dataset, self.encoder, limit)
        if isinstance(self.train_dataset, IterableDataset):
            self.train_dataset = infinite(self.train_dataset, self.args.seed if self.shuffle_dataset else None)
            self.shuffle_dataset = False  # TRL would mix the passes

    def _suppress_tokens(self, tokens: list[int]) -> None:
        """Suppress tokens in generation by transformers, and by the vLLM that TRL has for a `rollout_func`."""
        if self.args.use_vllm:
            options = self.vllm_generation.generation_kwargs
            options["logit_bias"] = {**(options.get("logit_bias") or {}), **dict.fromkeys(tokens, -100.0)}
            return
        known = self.generation_config.suppress_tokens or []
        self.generation_config.suppress_tokens = sorted({*known, *tokens})
        self.generation_kwargs["suppress_tokens"] = self.generation_config.suppress_tokens  # laid over it again

    def _generate_with_cache(self) -> None:
        """Let no `use_cache: false` of the checkpoint reach generation; one in --generation_kwargs does."""
        if "use_cache" not in (self.args.generation_kwargs or {}):
            self.generation_config.use_cache = True
            self.generation_kwargs["use_cache"] = True  # laid over it again

    @property
    def _has_rollout_func(self) -> bool:
        """Whether a `rollout_func` of the user's samples the completions; TRL then pads, scores and logs them."""
        return getattr(self, "rollout_func", None) is not None

    @property
    def _phase_metrics(self) -> dict[str, list[float]]:
        return self._metrics["train" if self.model.training else "eval"]

    def _add_metrics(self, logs: Mapping[str, float]) -> None:
        for name, value in logs.items():
            self._phase_metrics[name].append(value)

    # Rollouts

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's, but completions of one prompt stay together when a rollout is shuffled and cut into micro-batches."""
        if not (self.model.training and self.shared_prefix.is_on):
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        is_due = self._step % (steps * self.num_iterations) == 0 and not self.retry.is_retry
        if is_due or self._buffered_inputs is None:
            rollout = RolloutBatch.from_trl_dict(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = split_tensor_dict(rollout.shuffle_groups().to_trl_dict(), steps)
        return self._buffered_inputs[self._step % steps]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a rollout as TRL's loss takes it, of groups with a signal where dynamic sampling is on."""
        if self.dynamic_sampler is None or not self.model.training:
            return self._roll_out([*inputs])[0].to_trl_dict()
        name = self.args.dynamic_sampling_reward

        def sample(rows: list[Row]) -> tuple[RolloutBatch, Tensor]:
            batch, rewards = self._roll_out(rows)
            batch.old_logps = self._old_logprobs(batch).logps
            decides = None if name is None else rewards[:, self.reward_func_names.index(name)]
            return batch, self.scorer.total(rewards) if decides is None else decides

        return self.dynamic_sampler.collect([*inputs], sample, self._metrics["train"]).to_trl_dict()

    def _roll_out(self, rows: list[Row]) -> tuple[RolloutBatch, Tensor]:
        """Return the rollout of rows, with the algorithm's advantages, and the (all B, F) rewards."""
        if self._has_rollout_func:
            return self._roll_out_by_function(rows)
        if self.critic is not None:
            self.critic.clear()
        rollout, hints = self._sample(rows)
        messages = self.collector.messages(rollout, parses_responses=not self._is_rloo)
        batch = self.collector.to_batch(rollout)
        self._log_lengths(rollout, batch)
        logprobs = self._add_logprobs(batch)
        sampled = self._reward_inputs(rollout, messages, hints)
        rewards = self._calculate_rewards(*sampled, rollout.ids)
        self.logger.flush_pending(self._phase_metrics, len(rows))
        needs_greedy = self.algorithm.config.needs_greedy and self.model.training
        greedy = self._score_greedy(rollout, sampled) if needs_greedy else None
        self._add_advantages(batch, rewards, logprobs)
        scored = self._scored(rows, batch, rewards)
        scored.demonstrations, scored.greedy_rewards = rollout.demonstrations, greedy
        advantages = self._replace_advantages(scored) if self.model.training else None
        self._log_rollout(rollout, messages, batch, rewards, advantages)
        self.collector.release(rollout)
        batch.prompts = drop_images(batch.prompts or [])
        if self.model.training:
            self.algorithm.finish(scored)
        return batch, rewards

    def _roll_out_by_function(self, rows: list[Row]) -> tuple[RolloutBatch, Tensor]:
        """Return what TRL makes of a `rollout_func` of the user's, with the algorithm's advantages."""
        if self.critic is not None:
            self.critic.clear()
        decoded = [decode_images(row) for row in rows]
        batch = RolloutBatch.from_trl_dict(super()._generate_and_score_completions(decoded))
        rewards = self.logger.last_rewards(len(rows) * self.ranks.count)
        scored = self._scored(decoded, batch, rewards)
        advantages = self._replace_advantages(scored) if self.model.training else None
        if advantages is not None:
            self.logger.replace_advantages(advantages.of_completions())
        self._show(decoded, [row.get("images") or [] for row in decoded], (), batch)
        if self.model.training:
            self.algorithm.finish(scored)
        return batch, rewards

    def _sample(self, rows: list[Row]) -> tuple[Rollout, list[str]]:
        """Return completions of rows, and the hints that the rows' answers begin with; no list at all without hints."""
        step = self.state.global_step
        hints = self.algorithm.hints(rows, step) if self.model.training else []
        demonstrations = self.algorithm.demonstrations(rows, step) if self.model.training else {}
        hinted = [with_hint(*pair) for pair in zip(rows, hints, strict=True)] if hints else rows
        if not self.engine.has_own_weights:
            return self.collector.collect(hinted, demonstrations), hints
        self.weight_sync.update(step)
        rollout = self.collector.collect(hinted, demonstrations)
        self.weight_sync.sleep()
        return rollout, hints

    def _add_logprobs(self, batch: RolloutBatch) -> RolloutLogprobs:
        """Score a new rollout under the policy and the reference, as far as the loss or the rewards need it."""
        every = self.args.steps_per_generation * self.num_iterations
        needs_old = self._is_rloo or self.args.gradient_accumulation_steps % every != 0 or self._corrects_sampler
        old = ref = None
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if needs_old:
                old = self.completion_logprobs(batch, self.model, chunk=self._rows_per_pass).logps
            if self.beta != 0.0:
                ref = self._reference_logps(batch)
        if self._corrects_sampler and batch.sampling_logps is None:
            raise ValueError(
                f"--rollout_engine {self.args.rollout_engine} has returned no log-probabilities, which the correction "
                "for its differences from the policy needs; set --vllm_importance_sampling_correction false"
            )
        if old is not None and batch.sampling_logps is not None:
            self._compare_with_sampler(batch, old, batch.sampling_logps)
        if self._is_rloo:
            sampled = required(old, "the policy's score")
            batch.old_sequence_logps, batch.num_items_in_batch = (sampled * batch.loss_mask).sum(dim=1), None
            return RolloutLogprobs(old, ref)
        batch.old_logps, batch.ref_logps = old, ref
        return RolloutLogprobs(old, ref)

    @property
    def _corrects_sampler(self) -> bool:
        """Whether the loss weighs tokens by the policy's over the engine's probability; RLOO's does not."""
        return self.engine.has_own_weights and getattr(self, "vllm_importance_sampling_correction", False)

    def _compare_with_sampler(self, batch: RolloutBatch, old: Tensor, sampler: Tensor) -> None:
        """Log how far an engine is from the policy, and set the ratios that correct for it."""
        metrics = difference_metrics(old, sampler, batch.loss_mask, self.ranks)
        self.difference_check(metrics[MEAN_DIFFERENCE], self.state.global_step)
        self._add_metrics(metrics)
        if self._corrects_sampler:
            bounds = (self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max)
            mode = self.vllm_importance_sampling_mode
            batch.importance_sampling_ratio = importance_ratio(old, sampler, batch.loss_mask, mode, *bounds)
            self._add_metrics(ratio_metrics(batch.importance_sampling_ratio, batch.loss_mask, self.ranks))

    @property
    def _rows_per_pass(self) -> int:
        args = self.args
        return args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size

    # Rewards and advantages

    def _reward_inputs(self, rollout: Rollout, messages: list[Any], hints: list[str]) -> RewardInputs:
        """Return the arguments of reward functions: rows with images, and whole answers where the prompt began them."""
        hidden = (*MEDIA_COLUMNS, TOOLS_COLUMN)
        rows = [
            {**{k: v for k, v in row.items() if k not in hidden}, "prompt": prompt.messages}
            for row, prompt in zip(rollout.rows, rollout.prompts, strict=True)
        ]
        prompts = [prompt.prompt_for_rewards() for prompt in rollout.prompts]
        return self.scorer.inputs(rollout, RewardInputs(rows, *without_hints(prompts, messages, hints)))

    def _add_advantages(self, batch: RolloutBatch, rewards: Tensor, logprobs: RolloutLogprobs) -> None:
        """Give a rollout the advantages of TRL's trainer."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        totals = self.scorer.total(rewards)
        if self._is_rloo:
            advantages = rloo_advantages(
                totals,
                size,
                clip_range=self.reward_clip_range,
                penalties=self._sequence_penalties(batch, logprobs),
                is_normalized=self.normalize_advantages,
            )
        elif self.multi_objective_aggregation == "normalize_then_sum":
            advantages = normalized_advantages(rewards, self.reward_weights, size)
        else:
            advantages = grpo_advantages(totals, size, self.scale_rewards)
        self.logger.log_rewards(self._phase_metrics, rewards, totals, advantages.is_std_zero)
        batch.advantages = self.ranks.local_rows(advantages.values, len(batch))

    def _sequence_penalties(self, batch: RolloutBatch, logprobs: RolloutLogprobs) -> Tensor | None:
        """Return (all B,) what RLOO's KL of each completion costs; None without one."""
        if logprobs.ref is None:
            return None
        mask = batch.loss_mask
        kl = (required(logprobs.old, "the policy's score") - logprobs.ref) * mask
        self._add_metrics({"kl": self.ranks.masked_mean(kl, mask)})
        return self.beta * self.ranks.gather(kl.sum(dim=1))

    def _score_greedy(self, rollout: Rollout, sampled: RewardInputs) -> Tensor:
        """Return the (B,) reward of the greedy completion of each row's prompt; each prompt is completed once."""
        first = {id(prompt): row for row, prompt in reversed(list(enumerate(rollout.prompts)))}
        rows = sorted(first.values())
        most = int(self.ranks.gather(torch.tensor([len(rows)], device=self.accelerator.device)).max())
        padded = rows + rows[-1:] * (most - len(rows))  # rewards are gathered: every process has equally many
        unique = [rollout.prompts[row] for row in padded]
        self.weight_sync.update(self.state.global_step)  # an engine that sleeps has lost them
        ids = self.engine.generate(unique, is_greedy=True).ids
        self.weight_sync.sleep()
        table = self._calculate_rewards(*self.scorer.greedy_inputs(sampled, padded, unique, ids), ids)
        self.logger.forget_pending()  # what rewards log is about sampled completions
        mine = self.ranks.local_rows(self.scorer.total(table), most).tolist()
        values = dict(zip(rows, mine, strict=False))
        return torch.tensor([values[first[id(prompt)]] for prompt in rollout.prompts], device=table.device)

    def _scored(self, rows: Sequence[Row], batch: RolloutBatch, rewards: Tensor) -> ScoredRollout:
        """Return what the hooks of the algorithm take."""
        totals, metrics = self.scorer.total(rewards), self._metrics["train"]
        return ScoredRollout(rows, batch, rewards, totals, self.state.global_step, metrics)

    def _replace_advantages(self, rollout: ScoredRollout) -> Advantages | None:
        """Put the algorithm's advantages in place of TRL's and return those of all processes; None keeps TRL's."""
        batch, algorithm = rollout.batch, self.algorithm
        if self.kl.coefficient or algorithm.needs_old_logps:
            old = self._old_logprobs(batch)
            rollout.old_logps, rollout.values = old.logps, old.values
        if self.kl.coefficient:
            rollout.penalties = self._kl_penalties(batch, required(rollout.old_logps, "the policy's score"))
        if not algorithm.config.uses_ratio:
            batch.old_logps = None
        advantages = algorithm.advantages(rollout)
        if self.critic is not None:
            self.critic.clear()
        if advantages is not None:
            mine = self.ranks.local_rows(advantages.values, len(batch))
            batch.advantages = mine if advantages.mask is None else mine[:, : batch.completion_ids.size(1)]
        algorithm.mask_tokens(rollout)
        return advantages

    def _kl_penalties(self, batch: RolloutBatch, old: Tensor) -> Tensor:
        reference = batch.ref_logps if self.beta else self._reference_logps(batch)
        reference = required(reference, "the reference model's score")
        penalties, logs = self.kl.penalties(old, reference, batch.loss_mask)
        self._add_metrics(logs)
        return penalties

    def _old_logprobs(self, batch: RolloutBatch) -> TokenLogprobs:
        """Return what a rollout had under the policy that sampled it; TRL's, if it computed them."""
        if batch.old_logps is not None:
            values = None if self.critic is None else self.critic.first  # of the same pass
            return TokenLogprobs(batch.old_logps, None, None, values)
        with torch.no_grad():
            return self.completion_logprobs(batch, self.model)

    def _reference_logps(self, batch: RolloutBatch) -> Tensor:
        """Return (B, C) log-probabilities under the reference; of an adapter the model without it, or its copy."""
        with torch.no_grad():
            if self.ref_model is not None:
                return self.completion_logprobs(batch, self.ref_model).logps
            model = self.accelerator.unwrap_model(self.model)
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                return self.completion_logprobs(batch, self.model).logps

    # Log-probabilities and loss

    def completion_logprobs(
        self, batch: RolloutBatch, model: nn.Module, compute_entropy: bool = False, chunk: int | None = None
    ) -> TokenLogprobs:
        """Return what the completions of a rollout or micro-batch have under a model."""
        visual = (
            {name: batch.others[name] for name in VISUAL_KEYS if name in batch.others} if self._has_rollout_func else {}
        )
        asked = ScoringPass.of_batch(batch, chunk or self.args.per_device_train_batch_size, compute_entropy)
        return self._score(model, self._rows_of(batch), asked, **visual)

    def _rows_of(self, batch: RolloutBatch) -> ScoredRows:
        return ScoredRows(batch.prompts or [], batch.media_anywhere or [False for _ in MEDIA_KINDS])

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
        """Score the micro-batch whose loss is computed, for TRL's loss."""
        tokens = (input_ids, attention_mask, logits_to_keep)
        asked = ScoringPass(*tokens, batch_size, compute_entropy, compute_aux_loss)
        scores = self._score(model, self._rows, asked, **visual)
        return scores.logps, scores.entropies, scores.aux_loss

    def _score(self, model: nn.Module, rows: ScoredRows, asked: ScoringPass, **visual: Any) -> TokenLogprobs:
        """Score completions by `LogprobModel`, or by TRL where a rollout is TRL's own."""
        has_values = self.critic is not None and model is not self.ref_model
        if rows.attended is not None:
            asked = asked.attending(rows.attended)
        if not self._has_rollout_func:
            scores = self.logprobs(model, rows, asked, has_values=has_values)
            if self.critic is not None and scores.values is not None:
                self.critic.collect(scores.values)
            return scores
        score = super()._get_per_token_logps_and_entropies
        if self.critic is None or not has_values:
            return TokenLogprobs(*score(model, *asked, **visual))
        with self.critic.recording(self.accelerator.unwrap_model(self.model), asked.completion):
            logps, entropies, aux_loss = score(model, *asked, **visual)
        return TokenLogprobs(logps, entropies, aux_loss, self.critic.last)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's; where a packed forward has no memory left, the optimizer step is made again in smaller parts."""

        def take(micro_step: int) -> Tensor:
            self._step = micro_step
            return super(VLMTrainerMixin, self).training_step(model, inputs, num_items_in_batch)

        start = StepStart(self.state.global_step, self._step)
        return self.retry.run(take, start, lambda: self._metrics["train"], self.model.zero_grad)

    def _compute_loss(self, model: nn.Module, inputs: ModelInputs) -> Tensor:
        """Return the loss of a micro-batch: TRL's or the algorithm's, the value model's and that of demonstrations."""
        batch = RolloutBatch.from_trl_dict(inputs)
        rows = self._rows = self._rows_of(batch)
        if self.model.training:
            self.retry.begin_loss(self._step, len(rows.prompts), self._metrics["train"])
        if self._is_rloo and batch.tool_mask is not None:  # RLOO has no mask for tokens of tools
            rows.attended, batch.completion_mask = batch.completion_mask, batch.loss_mask
        if self._skips_zero_advantage:
            rows.zero_advantage = ZeroAdvantageRows(batch)
        loss = self._loss_of_policy(model, batch) if batch.returns is None else self._loss_with_values(model, batch)
        if rows.zero_advantage is not None and self.shared_prefix.is_on:  # it may be off since this forward
            correct_entropy(self._phase_metrics, self.ranks.sum(rows.zero_advantage.entropy_stats))
        return self._add_extra_loss(model, loss, batch) if self.model.training else loss

    def _add_extra_loss(self, model: nn.Module, loss: Tensor, batch: RolloutBatch) -> Tensor:
        index = self._step - self.retry.start.micro_step
        place = MicroStep(self.state.global_step, index, self.current_gradient_accumulation_steps)

        def score(prompts: Sequence[EncodedPrompt], anywhere: Sequence[bool], *tokens: Any) -> Tensor:
            return self._score(model, ScoredRows(prompts, anywhere), ScoringPass(*tokens)).logps

        loss, logs = self.algorithm.extra_loss(loss, batch, place, score)
        self._add_metrics(logs)
        return loss

    def _loss_of_policy(self, model: nn.Module, batch: RolloutBatch) -> Tensor:
        if self.algorithm.config.uses_trl_loss:
            return super()._compute_loss(model, batch.to_trl_dict())
        scores = self._score(model, self._rows, ScoringPass.of_batch(batch, compute_entropy=True))
        losses, logs = self.algorithm.policy_loss(batch, scores)
        self._add_metrics(logs)
        return self._average(losses, batch.loss_mask, batch)

    def _loss_with_values(self, model: nn.Module, batch: RolloutBatch) -> Tensor:
        critic = required(self.critic, "the value model")
        critic.clear()
        is_warming_up = critic.is_warming_up(self.state.global_step)
        policy = self._loss_of_policy(model, batch)
        losses, mask = self.algorithm.value_loss(critic.take(), batch)
        self._add_metrics({"value_loss": self.ranks.masked_mean(losses, mask)})
        loss = self._average(losses, mask, batch)
        return loss + (0.0 * policy if is_warming_up else policy)

    def _average(self, losses: Tensor, mask: Tensor, batch: RolloutBatch) -> Tensor:
        is_training = self.model.training
        parts = self.current_gradient_accumulation_steps if is_training else 1
        return self.loss_average(losses, mask, batch.num_items_in_batch, parts, is_training)

    @property
    def _skips_zero_advantage(self) -> bool:
        """Whether a completion with advantage 0 contributes nothing to the loss: no KL, no entropy term."""
        if not self.shared_prefix.is_on or self._has_rollout_func or self.aux_loss_enabled:
            return False
        if not self.algorithm.skips_zero_advantage:
            return False
        kl_in_loss = self.beta != 0.0 and not self._is_rloo  # RLOO has it in the reward
        needs_entropy = getattr(self, "_entropy_bonus_enabled", False) or getattr(self, "use_adaptive_entropy", False)
        return not kl_in_loss and not needs_entropy and getattr(self, "top_entropy_quantile", 1.0) == 1.0

    # Logs

    def _log_lengths(self, rollout: Rollout, batch: RolloutBatch) -> None:
        """Log tokens, lengths and, of rollouts with tools, the numbers of trajectories."""
        metrics = self._phase_metrics
        tokens = batch.prompt_mask.sum() + sum(map(len, rollout.ids))
        if self.model.training:
            self.state.num_input_tokens_seen += int(self.ranks.gather(tokens).sum())
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        self.logger.log_lengths(metrics, rollout, self.collector.is_truncated(rollout))
        if rollout.trajectories:
            self.logger.log_trajectories(metrics, rollout.trajectories)

    def _log_rollout(
        self, rollout: Rollout, messages: list[Any], batch: RolloutBatch, rewards: Tensor, credited: Advantages | None
    ) -> None:
        """Put a rollout into the table of completions, and show it to who watches the training."""
        step = self.state.global_step
        advantages = Advantages(self.ranks.gather(batch.advantages)) if credited is None else credited
        prompts = [prompt.messages for prompt in rollout.prompts]
        self.logger.log_completions(prompts, messages, rewards, advantages.of_completions())
        self.scorer.write(step, rollout, rollout.rows, rewards)
        self._log_images([prompt.images for prompt in batch.prompts or ()])
        self._show(rollout.rows, rollout.images, rollout.turns, batch)

    def _show(self, rows: Sequence[Row], images: list[list[Any]], turns: Sequence[Any], batch: RolloutBatch) -> None:
        """Hand this process's part of a rollout to who watches the training; keep text alone for W&B's table."""
        if self.watch_rollout is not None and self.model.training:
            ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
            place = SampleLocation(self.state.global_step + 1, self.ranks.index, self.ranks.count)
            self.watch_rollout(local_rollout(rows, images, batch, self._logs, ends, place, turns))
        for column in (self._logs["prompt"], self._logs["completion"]) if self.log_completions else ():
            plain = [plain_messages(messages) for messages in column]
            column.clear()
            column.extend(plain)

    def _log_images(self, images: Sequence[list[Any]]) -> None:
        """Gather thumbnails for the completions table; every rank takes part or none does."""
        tables = {"wandb", "trackio"} & set(self.args.report_to or [])
        if self.log_completions and self.log_multimodal and tables:
            small = {id(each): thumbnails(each) for each in images}
            self._logs["images"].extend(gather_object([small[id(each)] for each in images]))

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Greedily, with the task's metrics, where a GreedyEvaluation was made; else TRL's, on sampled completions."""
        if self.evaluate_greedily is None or args or options.get("eval_dataset") is not None:
            return super().evaluate(*args, **options)
        metrics = self.evaluate_greedily()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # The training loop, its checkpoints and what it writes

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        stock: Any = super()._get_train_sampler(dataset)
        return EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """TRL's, with the value model in groups of its own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self.critic is not None and is_new:
            self.critic.add_param_groups(optimizer)
        return optimizer

    def train(  # type: ignore[override]  # its other arguments are passed on
        self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any
    ) -> Any:
        """TRL's; `resume_from_checkpoint=True` is the newest complete checkpoint, or a new start without one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = resumable(self.args.output_dir)
        path = None if resume_from_checkpoint in (None, False) else str(resume_from_checkpoint)
        if path is not None:
            self.checkpoint_parts.verify(path)
            check_fit(self.model, path, is_deepspeed=self.is_deepspeed_enabled)
            if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                check_optimizer(self.create_optimizer(), path)
            self.checkpoint_parts.load(path)
        self.pop_callback(self.preemption)
        self.add_callback(self.preemption)  # the last, so that it has the last word on what follows a step
        with self.preemption.listening():
            return super().train(resume_from_checkpoint=path, **options)

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, *rest: Any) -> tuple[int, int]:
        """The Trainer's; a run that was killed after its last step has no epoch left; that takes one more step."""
        state = super()._init_training_state(max_steps, steps, epochs, *rest)
        if self.state.global_step > max_steps:
            raise ValueError(
                f"the checkpoint is at step {self.state.global_step}, and this run ends at step {max_steps}: give "
                "--max_steps or --num_train_epochs a larger value, or resume from an earlier checkpoint"
            )
        return (epochs, 0) if self.state.global_step >= max_steps else state

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with writing_checkpoint(folder, **self._writer()):
            super()._save_checkpoint(model, trial)
            self._write_card(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's; a model that is saved by itself replaces an older one only when all of its files are whole."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        with writing_model(Path(output_dir or self.args.output_dir), **self._writer()) as partial:
            super().save_model(str(partial), _internal_call=True)
            self._write_card(partial)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        return None

    def create_model_card(  # type: ignore[override]  # as TRL's
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write this package's card; TRL's arguments, where given, are its title, its data and further tags."""
        folder = Path(self.args.output_dir)
        card = self._card(folder)
        data = card.facts.data if dataset_name is None else [dataset_name]
        more = [tags] if isinstance(tags, str) else tags or []
        facts = dataclasses.replace(card.facts, data=data)
        card = dataclasses.replace(card, path=model_name or card.path, facts=facts, tags=[*card.tags, *more])
        if self.args.should_save:
            write_whole(folder / NAME, card.text())

    def _write_card(self, folder: Path) -> None:
        if self.args.should_save and folder.is_dir():
            write_whole(folder / NAME, self._card(folder).text())

    def _card(self, folder: Path) -> Card:
        adapters = getattr(self.model, "peft_config", {})
        name, config = configured_algorithm(self.args)
        return Card(
            path=self.args.hub_model_id or str(folder.parent if folder.name == PARTIAL else folder),
            base_model=str(getattr(self.model.config, "_name_or_path", "") or ""),
            trainer=name or self._name,
            method=f"{config.summary} ({config.paper})" if name else f"Method: arXiv:{self._paper['id']}.",
            rewards=dict(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True)),
            settings=settings_of(self.args, self.accelerator.num_processes, next(iter(adapters.values()), None)),
            logs=self.state.log_history,
            place=(self.state.global_step, self.state.max_steps),
            evaluated=self.evaluated,
            template_options=self.args.chat_template_kwargs or {},
            tokens=self.args.max_completion_length,
            is_adapter=bool(adapters),
            sees_images=self._is_vlm,
            tags=self._tag_names,
            facts=self.card_facts,
        )

    def _writer(self) -> dict[str, Any]:
        wait = self.accelerator.wait_for_everyone
        return {"model": self.model, "is_main": self.args.should_save, "wait": wait}

    def _save_rng_state(self, output_dir: str) -> None:
        """The Trainer's, and the state of every part: the last that is written but for trainer_state.json."""
        super()._save_rng_state(output_dir)
        self.checkpoint_parts.save(output_dir)

    def _current_rollout(self) -> tuple[int, list[ModelInputs] | None]:
        """Return the number of micro-steps, and the micro-batches of a rollout that is not used up."""
        is_over = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return self._step, None if is_over else self._buffered_inputs

    def _restore_rollout(self, step: int, batches: list[ModelInputs] | None) -> None:
        self._step, self._buffered_inputs = step, batches

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_whole_model(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_whole_model(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_whole_model(self, checkpoint: str | None) -> bool:
        """Load all weights of a checkpoint as `from_pretrained` does; False where they are to be loaded otherwise."""
        # DeepSpeed and FSDP restore sharded weights under live names; an adapter's names are never converted.
        is_by_trainer = self.is_deepspeed_enabled or self.is_fsdp_enabled or is_peft_model(self.model)
        if checkpoint is None or is_by_trainer or not has_full_weights(checkpoint):
            return False
        load_full_weights(self.model, checkpoint)
        return True
