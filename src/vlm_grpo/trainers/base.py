"""The one pipeline of both trainers: what TRL's private methods do with images is replaced here, and only here.

The way of a batch: rows -> `PromptEncoder.encode` (one sample per row, shared within a group) -> TRL generates,
scores and computes advantages on text -> every row of the buffered batch carries its sample -> the loss looks up the
pixels of its own rows. TRL never sees an image, so nothing of it is copied, gathered or processed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor

from vlm_grpo.answer_space import answer_space
from vlm_grpo.loading import (
    for_language_model,
    freeze_parts,
    freeze_vision,
    limit_images,
    name_experts,
    placeholder_ids,
)
from vlm_grpo.rollouts.decoding import turns_of_text, warn_of_tags, whole_turn, with_turns
from vlm_grpo.rollouts.encoder import (
    MEDIA_KINDS,
    TOOLS_COLUMN,
    EncodedPrompt,
    PromptEncoder,
    collate_per_token,
    collate_visual,
    drop_images,
    unique_prompts,
)
from vlm_grpo.rollouts.env_pool import pop_env_pool
from vlm_grpo.rollouts.logged_rollout import LoggedRollout, SampleLocation, local_rollout, plain_messages
from vlm_grpo.rollouts.messages import MEDIA_COLUMNS
from vlm_grpo.rollouts.prompt_lengths import drop_long_prompts
from vlm_grpo.rollouts.video import patch_glm4v_placeholder_mask, thumbnails
from vlm_grpo.trainers.advantage_estimation import Crediting
from vlm_grpo.trainers.completion_log import debug_log
from vlm_grpo.trainers.fsdp import FullParamsBackend
from vlm_grpo.trainers.image_columns import decode_images, disable_image_decoding
from vlm_grpo.trainers.no_signal import NoSignal
from vlm_grpo.trainers.persistence import Persistence
from vlm_grpo.trainers.playing import Playing
from vlm_grpo.trainers.policy_loss import OwnLoss
from vlm_grpo.trainers.reference import check_reference
from vlm_grpo.trainers.reward_functions import named_rewards
from vlm_grpo.trainers.sampler import EpochSampler, infinite
from vlm_grpo.trainers.sharing import PromptSharing


class VLMTrainerMixin(Persistence, Playing, PromptSharing, Crediting, OwnLoss):
    """Mixin over `GRPOTrainer` or `RLOOTrainer`: images decoded, processed and moved once, in any mixture of rows."""

    config_class: type  # made when no `args` are given

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, **options: Any) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = self.config_class(f"{name.rstrip('/').split('/')[-1]}-{self._tag_names[-1].upper()}")
        self._stage = stage = pop_env_pool(options, args)
        reward_funcs, weights = named_rewards(reward_funcs, args, stage.rewards() if stage else [])
        if weights is not None:
            args.reward_weights = weights
        for name in ("train_dataset", "eval_dataset"):
            if options.get(name) is not None:
                options[name] = disable_image_decoding(options[name])
        if options.get("peft_config") is not None:
            options["peft_config"] = for_language_model(options["peft_config"])
        super().__init__(model, reward_funcs, args, **options)
        self._dist = FullParamsBackend(self.accelerator)
        check_reference(self.args, is_sharded=self._dist.is_zero3 or self._dist.is_fsdp)
        self._samples: list[EncodedPrompt] = []
        self._is_told = False  # that prompts do not fit the chat template
        self._turns: list[Any] = []  # of the rollout at hand, as rewards see them
        self._media_anywhere = [False for _ in MEDIA_KINDS]  # in the rollout at hand, on any process
        self._debug = debug_log(os.environ, self.accelerator.process_index)
        self._encoder: PromptEncoder | None = None
        if getattr(self.args, "freeze_vision_modules", False):
            freeze_vision(self.model)
        if parts := getattr(self.args, "frozen_parts", list)():
            freeze_parts(self.model, parts)
        if self._is_vlm:
            limit_images(self.processing_class, self.model.config, self.args)
            name_experts(self.model)
            self._never_sample(placeholder_ids(self.model.config, self.processing_class))
            patch_glm4v_placeholder_mask(self.model, self.ref_model)
        can_share = self._is_vlm and not self._is_stock
        self._start_sharing(getattr(self.args, "shared_prefix", "auto") if can_share else "off")
        self._start_playing()
        self._start_crediting()
        self.no_signal = NoSignal(self.accelerator.is_main_process)
        self.add_callback(self.no_signal)
        self._prepare_rows()

    def _prepare_rows(self) -> None:
        """Drop rows with over-long prompts; begin a stream again at its end."""
        limit = getattr(self.args, "max_prompt_length", None)
        if limit is not None:
            self.train_dataset = drop_long_prompts(self.train_dataset, self.encoder, limit)
        if isinstance(self.train_dataset, IterableDataset):
            self.train_dataset = infinite(self.train_dataset, self.args.seed if self.shuffle_dataset else None)
            self.shuffle_dataset = False  # TRL would mix the passes

    def _never_sample(self, tokens: list[int]) -> None:
        """Suppress tokens in generation by transformers and by vLLM; TRL suppresses the image's, with the former."""
        if self.use_vllm:
            options = self.vllm_generation.generation_kwargs
            options["logit_bias"] = {**(options.get("logit_bias") or {}), **dict.fromkeys(tokens, -100.0)}
        else:
            known = self.generation_config.suppress_tokens or []
            self.generation_config.suppress_tokens = sorted({*known, *tokens})
            self.generation_kwargs["suppress_tokens"] = self.generation_config.suppress_tokens  # laid over it again

    evaluate_greedily: Callable[[], dict[str, float]] | None = None  # set by evaluation.callback.GreedyEvaluation

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Greedily, with the task's metrics, where a GreedyEvaluation was made; else TRL's, on sampled completions."""
        if self.evaluate_greedily is None or args or options.get("eval_dataset") is not None:
            return super().evaluate(*args, **options)
        metrics = self.evaluate_greedily()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def encoder(self) -> PromptEncoder:
        """Encodes prompts; its `counters` tell how often images were decoded and processed."""
        if self._encoder is None:
            self._encoder = PromptEncoder(self.processing_class, self.chat_template_kwargs)
        return self._encoder

    @property
    def _is_stock(self) -> bool:
        """Custom rollouts keep TRL's own path; so do models without a processor, unless they have tools."""
        return getattr(self, "rollout_func", None) is not None or not (self._is_vlm or self._stage)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._is_stock:
            rows = [decode_images(row) for row in inputs]
            output = super()._generate_and_score_completions(rows)
            self._show(rows, [row.get("images") or [] for row in rows], output)
            self._simplify_logs()
            return output
        inputs = self._begin_episodes(inputs)
        prompts = self._samples = self.encoder.encode(inputs)
        self._is_told = self._is_told or warn_of_tags(prompts[0].opening, prompts[0].messages)
        self._media_anywhere = self._gather_media({kind for sample in self._samples for kind in sample.media})
        stripped = [
            {**{k: v for k, v in row.items() if k not in (*MEDIA_COLUMNS, TOOLS_COLUMN)}, "prompt": sample.messages}
            for row, sample in zip(inputs, prompts, strict=True)
        ]
        output = super()._generate_and_score_completions(stripped)
        self._log_images()
        self._show(
            inputs, [[*s.images, *later] for s, later in zip(prompts, self._images_of_tools(), strict=True)], output
        )
        self._simplify_logs()
        self._end_episodes(output)
        output["samples"] = drop_images(self._samples)
        output |= {f"{kind}_anywhere": torch.tensor(self._media_anywhere[n]) for n, kind in enumerate(MEDIA_KINDS)}
        self._samples = []
        return output

    watch_rollout: Callable[[LoggedRollout], None] | None = None  # set by evaluation.live.LiveReport, on one process

    def _show(self, rows: list[dict[str, Any]], images: list[list[Any]], output: dict[str, Any]) -> None:
        """Hand this process's part of a training rollout to who watches; nothing is gathered for it."""
        if self.watch_rollout is not None and self.model.training:
            ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
            place = SampleLocation(
                self.state.global_step + 1, self.accelerator.process_index, self.accelerator.num_processes
            )
            self.watch_rollout(local_rollout(rows, images, output, self._logs, ends, place, self._turns))

    def _simplify_logs(self) -> None:
        """Leave text alone in the completions table, as W&B needs it."""
        for column in (self._logs["prompt"], self._logs["completion"]) if self.log_completions else ():
            plain = [plain_messages(messages) for messages in column]
            column.clear()
            column.extend(plain)

    def _gather_media(self, here: set[str]) -> list[bool]:
        """Of MEDIA, what is in this rollout on any process; every process takes part in every rollout."""
        found = torch.tensor([[kind in here for kind in MEDIA_KINDS]], device=self.accelerator.device)
        return self.accelerator.gather(found).any(dim=0).tolist()

    def _tokenize_prompts(self, prompts: list) -> tuple:
        if self._is_stock:
            return super()._tokenize_prompts(prompts)
        longest = max(len(sample.input_ids) for sample in self._samples)
        fields = {**collate_visual(self._samples), **collate_per_token(self._samples, longest, 0)}
        if self.pad_to_multiple_of and self._samples[0].per_token:
            fields = {**fields, **{k: [s.per_token[k] for s in self._samples] for k in self._samples[0].per_token}}
        return [sample.input_ids for sample in self._samples], None, fields

    def _generate_single_turn(self, prompt_ids: list, images: Any, *rest: Any, **options: Any) -> Any:
        """TRL's, with images for vLLM: its engine expands placeholders itself, its server wants them expanded."""
        if self._stage is not None and not self._is_turn:
            ids = self._play()
            return (ids, None) if self._generates_logps else ids
        if self.use_vllm and not self._is_stock:
            if any(sample.videos for sample in self._samples):
                raise ValueError("--use_vllm: TRL hands images to vLLM but no videos; leave --use_vllm out for videos")
            prompts = self._prompts_for_vllm()
            sizes = {id(sample): self.encoder.resized_images(sample) or None for sample in unique_prompts(prompts)}
            images = [sizes[id(sample)] for sample in prompts]
            if self.vllm_mode == "colocate":
                short = {id(sample): self.encoder.unexpanded_ids(sample.messages) for sample in unique_prompts(prompts)}
                prompt_ids = [short[id(sample)] for sample in prompts]
        elif self._prefills_once:
            ids = self._generate_from_unique_prompts()
            return (ids, None) if self._generates_logps else ids
        return super()._generate_single_turn(prompt_ids, images, *rest, **options)

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, ids: list) -> Tensor:
        if self._is_stock:
            if getattr(self, "rollout_func", None) is None:  # an own rollout may begin answers as it likes
                openings, self._turns = turns_of_text(self.encoder.template, self.encoder.decode, prompts, ids)
                inputs = with_turns(inputs, openings, self._turns)
            return super()._calculate_rewards(inputs, prompts, completions, ids)
        space = answer_space(self.model.config.model_type, getattr(self.args, "answer_space", None))
        self._turns = self._whole_turns(ids)
        samples = [episode.prompt for episode in self._episodes] or self._samples
        seen = {
            id(sample): {"images": sample.images, **self.encoder.facts(sample), "answer_space": space}
            for sample in unique_prompts(samples)
        }
        with_images = [{**row, **seen[id(sample)]} for row, sample in zip(inputs, samples, strict=True)]
        with_images = with_turns(with_images, self._openings(), self._turns)
        for row, episode in zip(with_images, self._episodes, strict=False):
            row["environments"] = episode.environment
        prompts = [sample.prompt_for_rewards() for sample in samples]
        if self._episodes:
            completions = [episode.completion(with_images=True) for episode in self._episodes]
        rewards = super()._calculate_rewards(with_images, prompts, completions, ids)  # (all ranks' rows, functions)
        if self._debug is not None:
            start = self.accelerator.process_index * len(inputs)
            mine = rewards[start : start + len(inputs)].T.tolist()
            rows = [{**row, "images": sample.refs} for row, sample in zip(inputs, self._samples, strict=True)]
            values = dict(zip(self.reward_func_names, mine, strict=True))
            self._debug.write(self.state.global_step, rows, self._turns, values)
        return rewards

    def _openings(self) -> list[str]:
        """What each row's last turn of the assistant began with before the model went on."""
        return [episode.opening for episode in self._episodes] or [sample.opening for sample in self._samples]

    def _whole_turns(self, ids: list[list[int]]) -> list[Any]:
        """What the assistant has said in each row, with the openings of its turns."""
        if self._episodes:
            return [episode.shown for episode in self._episodes]
        return [
            whole_turn(sample.opening, self.encoder.decode(tokens), sample.messages)
            for sample, tokens in zip(self._samples, ids, strict=True)
        ]

    def _log_images(self) -> None:
        """Gather thumbnails for the completions table; every rank takes part or none does."""
        tables = {"wandb", "trackio"} & set(self.args.report_to or [])
        if self.log_completions and self.log_multimodal and tables:
            small = {id(sample): thumbnails(sample.images) for sample in unique_prompts(self._samples)}
            self._logs["images"].extend(gather_object([small[id(sample)] for sample in self._samples]))

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        stock = super()._get_train_sampler(dataset)
        return EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )
