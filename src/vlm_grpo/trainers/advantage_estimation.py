"""Which completion earns what: the advantages of algorithms that TRL does not have, for the whole rollout at once."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.algorithms import Recipe, advantages, find_algorithm
from vlm_grpo.algorithms.token_masks import covariances
from vlm_grpo.algorithms.values import token_rewards
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.trainers.critic import ValueModel
from vlm_grpo.trainers.kl_controller import KlPenalty, as_trl

# What TRL's own pass over a rollout takes of it besides tokens; this package's finds it with the samples.
OF_IMAGES = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


class Crediting(ValueModel, KlPenalty):
    """Mixin over TRL's trainers: replaces their advantages where `args.algorithm` has its own."""

    _samples: list[EncodedPrompt]

    def _start_crediting(self) -> None:
        """Look up the algorithm; called once.

        Raises:
            ValueError: the algorithm needs what this run does not have.
        """
        name = getattr(self.args, "algorithm", None)
        self._recipe: Recipe | None = find_algorithm(name) if name else None
        self._algorithm_options = getattr(self.args, "algorithm_options", None) or {}
        formula = self._recipe.advantage if self._recipe and not self._recipe.is_advantage_trls else None
        self._own_advantage = name if formula else None
        self._wants = set(signature(formula).parameters) if formula else set()
        if "greedy" in self._wants and (self.use_vllm or self._is_stock or self._stage):
            what = "--use_vllm" if self.use_vllm else "a run with tools, environments or a rollout function"
            raise ValueError(f"--algorithm {name} needs a greedy completion of each prompt, which {what} does not give")
        self._start_values()

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, ids: list) -> Tensor:
        self._reward_table = super()._calculate_rewards(inputs, prompts, completions, ids)  # (all rows, functions)
        self._greedy_rewards = None
        if "greedy" in self._wants and self.model.training:
            self._greedy_rewards = self._score_greedy(inputs, prompts)
        return self._reward_table

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self._credit(output)
        return output

    def _credit(self, output: dict[str, Any]) -> None:
        """Make of TRL's rollout that of the algorithm."""
        if not self.model.training:
            return
        recipe = self._recipe
        if recipe is not None and not recipe.has_ratio:
            output.pop("old_per_token_logps", None)
        if recipe is not None and recipe.credit is not None:
            self._credit_by_values(output)
        elif recipe is not None and recipe.of_tokens is not None and self._kl is not None:
            self._credit_tokens(output)
        elif self._own_advantage is not None or self._kl is not None:
            self._credit_completions(output)
        if recipe is not None and recipe.choice is not None:
            self._choose(output)

    def _credit_tokens(self, output: dict[str, Any]) -> None:
        """Advantages of single tokens, from their rewards: the completion's at its end, and the KL at each."""
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        rewards = token_rewards(self._own_rows(self._total(self._reward_table), len(mask)), mask, self._penalties)
        rewards, everywhere = self._everywhere(rewards, mask)
        self._set_advantages(output, self._recipe.of_tokens(rewards, everywhere), everywhere)

    def _everywhere(self, *tables: Tensor) -> list[Tensor]:
        """(B, C) tables of all processes' rows, padded to the longest completion of any."""
        pad, gather = self.accelerator.pad_across_processes, self.accelerator.gather
        return [gather(pad(table.contiguous(), dim=1)) for table in tables]

    def _own_rows(self, values: Tensor, count: int) -> Tensor:
        """This process's rows of those of all."""
        return values[self.accelerator.process_index * count :][:count]

    def _set_advantages(self, output: dict[str, Any], found: Tensor, mask: Tensor | None = None) -> None:
        """Put advantages of all processes, (B,) or (B, C), in place of TRL's in the rollout and in what is logged."""
        mine = self._own_rows(found, len(output["completion_ids"]))
        output["advantages"] = mine if mask is None else mine[:, : output["completion_ids"].size(1)]
        logged = self._logs["advantages"]
        for _ in range(len(found)):
            logged.pop()
        means = found if mask is None else (found * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        logged.extend(means.tolist())

    def _credit_completions(self, output: dict[str, Any]) -> None:
        """The algorithm's advantages in place of TRL's; with a KL in the reward TRL's own anew."""
        rewards = self._penalised(self._total(self._reward_table))
        if self._own_advantage is None:
            self._set_advantages(output, as_trl(rewards, self.num_generations, self.scale_rewards))
            return
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        options = self._options_of(self._recipe.advantage)
        if "lengths" in self._wants:
            options["lengths"] = self.accelerator.gather(mask.sum(dim=1))
        if self._greedy_rewards is not None:
            options["greedy"] = self.accelerator.gather(self._greedy_rewards).view(-1, self.num_generations)[:, 0]
        self._set_advantages(output, advantages(self._own_advantage, rewards, self.num_generations, **options))

    def _options_of(self, function: Any) -> dict[str, Any]:
        """Those of `--algorithm_options` that a function takes."""
        return {
            name: value for name, value in self._algorithm_options.items() if name in signature(function).parameters
        }

    def _choose(self, output: dict[str, Any]) -> None:
        """Mark tokens of the rollout, by what they are among those of all processes."""
        choice, local = self._recipe.choice, output["completion_mask"] * output.get("tool_mask", 1)
        old = self._old_logps(output)
        advantages_here = output["advantages"][:, None].expand_as(local)
        everywhere = self._everywhere(advantages_here, old * local, local)
        options = self._options_of(choice)
        if "seed" in signature(choice).parameters:
            options["seed"] = self.args.seed + self.state.global_step
        chosen = choice(covariances(*everywhere), everywhere[2], **options)
        output["chosen"] = self._own_rows(chosen, len(local))[:, : local.size(1)]
        if self._recipe.drops_chosen:
            output["advantages"] = advantages_here.masked_fill(output.pop("chosen"), 0.0)

    def _old_logps(self, output: dict[str, Any]) -> Tensor:
        """(B, C) log-probabilities of a rollout under the policy that sampled it; TRL's, if it computed them."""
        if "old_per_token_logps" in output:
            return output["old_per_token_logps"]
        ids, mask = (
            torch.cat([output[f"prompt_{what}"], output[f"completion_{what}"]], dim=1) for what in ("ids", "mask")
        )
        before, self._samples = self._samples, output.get("samples", self._samples)
        visual = {name: output[name] for name in OF_IMAGES if name in output} if self._is_stock else {}
        with torch.no_grad():
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, output["completion_ids"].size(1), self.args.per_device_train_batch_size, **visual
            )
        self._samples = before
        return logps

    def _total(self, table: Tensor) -> Tensor:
        """(B,) weighted sums of (B, functions) rewards; NaN where none applied."""
        total = (table * self.reward_weights.to(table.device)).nansum(dim=1)
        return total.masked_fill(table.isnan().all(dim=1), torch.nan)

    def _score_greedy(self, inputs: list, prompts: list) -> Tensor:
        """(B,) reward of the greedy completion of each row's prompt; every prompt is completed and scored once."""
        first = {id(sample): row for row, sample in reversed(list(enumerate(self._samples)))}
        rows = sorted(first.values())
        most = self.accelerator.gather(torch.tensor([len(rows)], device=self.accelerator.device)).max().item()
        padded = rows + rows[-1:] * (most - len(rows))  # rewards are gathered: every process has equally many
        ids = self._generate_greedily([self._samples[row] for row in padded])
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        kept = copy.copy(self._pending_extra_logs), copy.copy(self._pending_metrics)
        chosen = ([inputs[row] for row in padded], [prompts[row] for row in padded])
        table = super()._calculate_rewards(*chosen, completions, ids)
        self._pending_extra_logs, self._pending_metrics = kept  # what rewards log is about sampled completions
        start = self.accelerator.process_index * most
        mine = dict(zip(rows, self._total(table)[start : start + most].tolist(), strict=False))
        values = [mine[first[id(sample)]] for sample in self._samples]
        return torch.tensor(values, device=table.device)

    def _generate_greedily(self, samples: list[EncodedPrompt]) -> list[list[int]]:
        """One completion of each prompt, with the likeliest token at every place."""
        sampled, config = self._samples, self.generation_config
        self._samples, self.generation_config = samples, copy.deepcopy(config)
        self.generation_config.do_sample = False
        try:
            return self._generate_from_unique_prompts()
        finally:
            self._samples, self.generation_config = sampled, config
