"""Rollouts in which the model calls tools, for both trainers: TRL's own tool loop is not used.

Mixed into `VLMTrainerMixin`. Each row gets a trajectory (`env_pool.py`), runs (`multi_turn.py`), and comes back to TRL
as a completion whose tokens from tools are masked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import pad

from vlm_grpo.answer_space import answer_space
from vlm_grpo.loading import placeholder_ids
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.env_pool import EnvPool
from vlm_grpo.rollouts.multi_turn import EpisodeLimits, Trajectory, next_prompt, run_trajectories
from vlm_grpo.rollouts.prompt_lengths import correct_lengths
from vlm_grpo.rollouts.segment import EMPTY_SEGMENT, with_segment


class Playing:
    """Mixin over TRL's trainers: episodes instead of single completions, where there are tools or environments."""

    _samples: list[EncodedPrompt]
    _stage: EnvPool | None
    _episodes: list[Trajectory]  # of the rollout at hand
    _is_turn: bool = False  # whether a single turn is being generated
    _in_sight: Tensor | None = None  # (B, C) tokens that RLOO's loss attends to, where it does not train all of them

    def _start_playing(self) -> None:
        """Look whether this run can have tools; called once, before the rollouts.

        Raises:
            ValueError: it cannot.
        """
        self._episodes = []
        if self._stage is None:
            return
        if self.use_vllm:
            raise ValueError("--use_vllm does not go with tools or environments; leave it out")
        if getattr(self.args, "max_prompt_length", None) is not None:
            raise ValueError("--max_prompt_length cannot know what environments add to prompts; leave it out")
        template = getattr(self, "chat_template", None) or self.processing_class.chat_template
        self._stage.choose_protocols(self.args.tool_protocol, template)

    def _begin_episodes(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The rows as their environments begin them; without environments they stay as they are."""
        if self._stage is None:
            return rows
        self._episodes, opened = self._stage.begin(rows)
        return opened

    def _end_episodes(self, output: dict[str, Any]) -> None:
        """Add to a rollout which tokens are the model's, and let the environments go."""
        if self._stage is None:
            return
        if "tool_mask" not in output:
            output["tool_mask"] = self._own_tokens(output["completion_ids"].size(1))
        if "kl" in self._metrics[self._phase] and not self._generates_logps:
            self._correct_kl(output)
        self._stage.end(self._episodes)
        self._episodes = []

    def _images_of_tools(self) -> list[list[Any]]:
        """What each row's tools showed."""
        return [episode.images for episode in self._episodes] or [[] for _ in self._samples]

    @property
    def _phase(self) -> str:
        return "train" if self.model.training else "eval"

    def _own_tokens(self, width: int) -> Tensor:
        """(B, C), 0 at the tokens of tools."""
        masks = [torch.tensor(episode.mask) for episode in self._episodes]
        rows = pad(masks, padding_value=1, padding_side="right").to(self.accelerator.device)
        return torch.nn.functional.pad(rows, (0, width - rows.size(1)), value=1)

    def _play(self) -> list[list[int]]:
        """The tokens of each row's completion, tools' included; the rows at hand become those for the loss."""
        chosen = getattr(self.args, "answer_space", None)
        space = {"answer_space": answer_space(self.model.config.model_type, chosen)}
        for episode, sample in zip(self._episodes, self._samples, strict=True):
            episode.begin(sample, self.encoder.facts(sample) | space)
        rules = EpisodeLimits(
            most_tokens=self.max_completion_length,
            max_turns=self._most_turns(),
            seconds=self.args.tool_time_limit,
            ends=set(self.eos_token_ids),
        )
        run_trajectories(self._episodes, self._next_turns, self.encoder, rules, self._anyone)
        self._drop_broken()
        self._samples = [with_segment(episode.prompt, episode.later) for episode in self._episodes]
        self._media_anywhere = self._gather_media({kind for sample in self._samples for kind in sample.media})
        return [episode.later.ids for episode in self._episodes]

    def _most_turns(self) -> int:
        """Ours, or TRL's limit where that is tighter: it counts the turns that call tools, and one more answers."""
        iterations = getattr(self.args, "max_tool_calling_iterations", None)
        return self.args.max_turns if iterations is None else min(self.args.max_turns, iterations + 1)

    def _anyone(self, claim: bool) -> bool:
        return bool(self.accelerator.gather(torch.tensor([claim], device=self.accelerator.device)).any())

    def _next_turns(self, episodes: list[Trajectory], room: int) -> list[list[int]]:
        """One more turn of each; without episodes a token is generated for the others' sake."""
        samples = [next_prompt(episode) for episode in episodes] or [self._samples[0]]
        kept = self._samples, self.generation_config, self.generation_kwargs
        self._samples, self.generation_config = samples, copy.deepcopy(self.generation_config)
        self.generation_config.max_new_tokens = room
        self.generation_kwargs = {**self.generation_kwargs, "max_new_tokens": room}
        self._is_turn = True
        try:
            ids, _, fields = self._tokenize_prompts([])
            found = self._generate_single_turn(ids, None, fields, *([1] if self._generates_logps else []))
        finally:
            self._is_turn = False
            self._samples, self.generation_config, self.generation_kwargs = kept
        return (found[0] if self._generates_logps else found)[: len(episodes)]

    def _drop_broken(self) -> None:
        """Leave a completion whose model wrote a placeholder of images out of the loss: no pixels belong to it."""
        marks = set(placeholder_ids(self.model.config, self.processing_class))
        end = self.eos_token_ids[0]
        for episode in self._episodes:
            own = [token for token, is_own in zip(episode.later.ids, episode.mask, strict=True) if is_own]
            is_broken = bool(marks.intersection(own))
            if is_broken:
                episode.later, episode.mask = replace(EMPTY_SEGMENT, ids=[end]), [0]
            self._log_metric("episodes/dropped", float(is_broken))

    def _generate(self, prompts: list) -> tuple:
        output = super()._generate(prompts)
        if self._stage is None:
            return output
        said = [episode.completion() for episode in self._episodes]
        self._log_episodes()
        self._count_own_tokens()
        if not self._generates_logps:
            ids, completions, _ = output
            return ids, completions, said
        ids, completions, _, _, *rest = output
        return ids, completions, [episode.mask for episode in self._episodes], said, *rest

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """TRL's; its RLOO has no mask for tokens of tools: they leave the mask of the completion but stay in sight."""
        if self._generates_logps or "tool_mask" not in inputs:
            return super()._compute_loss(model, inputs)
        self._in_sight = inputs["completion_mask"]
        try:
            own = {"completion_mask": inputs["completion_mask"] * inputs["tool_mask"]}
            return super()._compute_loss(model, {**inputs, **own})
        finally:
            self._in_sight = None

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *rest: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._in_sight is not None:
            attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], self._in_sight], dim=1)
        logps, *others = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *rest, **options
        )
        if self._episodes and not self._generates_logps:  # of a rollout: RLOO sums them up
            logps = logps * self._own_tokens(logits_to_keep)
        return logps, *others

    def _log_episodes(self) -> None:
        for episode in self._episodes:
            counts = {"turns": episode.turns, "calls": episode.calls, "failed_calls": episode.failures}
            for name, value in {**counts, **episode.metrics()}.items():
                self._log_metric(f"episodes/{name}", float(value))
        counts = torch.tensor(
            [[len(self._episodes), *(sum(getattr(e, name) for e in self._episodes) for name in ("calls", "failures"))]],
            device=self.accelerator.device,
        )
        rows, calls, failures = self.accelerator.gather(counts).sum(dim=0).tolist()
        metrics = self._metrics[self._phase]
        metrics["tools/call_frequency"].append(calls / rows)
        metrics["tools/failure_frequency"].append(failures / max(calls, 1))

    def _count_own_tokens(self) -> None:
        """Put the model's own tokens in place of all tokens in what TRL logged about lengths."""
        facts = [[sum(e.mask), e.later.ids[-1] not in self.eos_token_ids] for e in self._episodes]
        table = self.accelerator.gather(torch.tensor(facts, device=self.accelerator.device, dtype=torch.float))
        correct_lengths(self._metrics[self._phase], table[:, 0], table[:, 1] > 0)

    def _correct_kl(self, output: dict[str, Any]) -> None:
        """RLOO's KL is of the model's tokens alone, but TRL divides it by the number of all."""
        counts = torch.stack([output["completion_mask"].sum(), (output["completion_mask"] * output["tool_mask"]).sum()])
        everything, own = self.accelerator.reduce(counts.float(), reduction="sum").tolist()
        self._metrics[self._phase]["kl"][-1] *= everything / max(own, 1.0)
