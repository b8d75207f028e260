"""An expert's answers in a rollout: beside sampled completions, in their place, or as the beginning of them.

What the losses make of them is in `algorithms/expert.py`; imitation beside a rollout is in `imitation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_grpo.algorithms import find_algorithm
from vlm_grpo.algorithms.advantages import nanstd
from vlm_grpo.algorithms.expert import (
    CHORD,
    HPT,
    SRFT,
    UFT,
    MixedRollout,
    OffPolicyConfig,
    build_config,
    needs_sft,
    segments,
)
from vlm_grpo.data.experts import expert_answers
from vlm_grpo.rollouts.prompt_lengths import correct_lengths
from vlm_grpo.trainers.demonstration_encoder import check_answers, demonstration_encoder
from vlm_grpo.trainers.sft_loss import Imitation

Rows = Sequence[Mapping[str, Any]]
PER_TOKEN = ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps")
OF_SAMPLER = ("sampling_per_token_logps", "importance_sampling_ratio")


class ExpertAnswers(Imitation):
    """Mixin over `VLMTrainerMixin`, for algorithms with a plan for an expert's answers; without one it does nothing.

    `demonstrations` are rows that CHORD takes its batches from, in place of the training rows with an answer.
    """

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, **options: Any) -> None:
        self._plan: OffPolicyConfig | None = None
        self._demonstrations = options.pop("demonstrations", None)
        self._answers: dict[int, list[int]] = {}  # of the rollout that is being sampled: rows that are the expert's
        self._hints: list[str] = []  # of its rows
        name = getattr(args, "algorithm", None)
        plan = find_algorithm(name).expert if name else None
        if plan is not None:
            self._plan = build_config(name, plan, args.algorithm_options or {}, args.num_generations)
            answered = options.get("train_dataset") if self._demonstrations is None else self._demonstrations
            check_answers(name, answered, model, options.get("processing_class"), args)
        if self._demonstrations is not None and not isinstance(self._plan, CHORD):
            raise ValueError("demonstrations, rows with questions of their own, go with --algorithm chord alone")
        super().__init__(model, reward_funcs, args, **options)
        if self._plan is not None:
            self._start_experts()
        self._start_imitation()

    def _start_experts(self) -> None:
        """Look up what the plan needs of the trainer.

        Raises:
            ValueError: tools, an own rollout or a model of text alone; no reward of that name among those of this run.
        """
        name = self.args.algorithm
        if self._is_stock or self._stage is not None:
            raise ValueError(f"--algorithm {name} needs a model with a processor, and no tools or rollout function")
        limit = self.args.max_completion_length
        self._encode_answer = demonstration_encoder(
            self.processing_class, self.eos_token_ids, limit, self.chat_template_kwargs
        )
        wanted = getattr(self._plan, "correct_reward", None)
        if wanted is not None and wanted not in self.reward_func_names:
            known = ", ".join(self.reward_func_names)
            raise ValueError(f"--algorithm_options: correct_reward must be one of {known}, got {wanted!r}")
        others = [known for known in self.reward_func_names if known != "format"] or self.reward_func_names
        self._judge = self.reward_func_names.index(wanted or others[0])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._plan is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._hints = self._drawn_hints(inputs)
        self._answers = self._joined_answers(inputs)
        rows = [_begun(row, hint) for row, hint in zip(inputs, self._hints, strict=True)] if self._hints else inputs
        try:
            output = super()._generate_and_score_completions(rows)
            if isinstance(self._plan, MixedRollout):
                self._mark_answers(output)
            elif isinstance(self._plan, HPT):
                self._rescue(inputs, output)
            elif isinstance(self._plan, UFT):
                count = torch.tensor(sum(s.begun for s in output["samples"]), device=self.accelerator.device)
                output["hint_tokens"] = self.accelerator.gather(count).sum()
        finally:
            self._hints, self._answers = [], {}
        return output

    def _place(self, rows: Rows, row: int) -> tuple[int, int]:
        """The group of a row among those of all processes, and which completion of the group it is."""
        return divmod(self.accelerator.process_index * len(rows) + row, self.num_generations)

    def _draw(self, group: int) -> np.random.Generator:
        """Random numbers of a group in this rollout: the same on every process, and again after a resume."""
        return np.random.default_rng([self.args.seed, self.state.global_step, group])

    def _joined_answers(self, inputs: Rows) -> dict[int, list[int]]:
        """The tokens of the last rows of each group that are the expert's, by row of this process."""
        found: dict[int, list[int]] = {}
        for row, record in enumerate(inputs if isinstance(self._plan, MixedRollout) else []):
            group, turn = self._place(inputs, row)
            answers = expert_answers(record)
            number = turn - (self.num_generations - min(self._plan.expert_rows, len(answers)))
            if number >= 0:
                order = self._draw(group).permutation(len(answers))
                found[row] = self._encode_answer.checked(answers[order[number]])
        return found

    def _drawn_hints(self, inputs: Rows) -> list[str]:
        """The beginning of each row's answer, equal within a group; no list at all without a plan of hints."""
        if not isinstance(self._plan, UFT):
            return []
        chance = self._plan.probability(self.state.global_step)
        self._metrics["train"]["expert/hint_probability"].append(chance)
        return [self._hint(record, self._place(inputs, row)[0], chance) for row, record in enumerate(inputs)]

    def _hint(self, record: Mapping[str, Any], group: int, chance: float) -> str:
        answers, draw = expert_answers(record), self._draw(group)
        if not answers:
            return ""
        answer = answers[draw.integers(len(answers))]
        self._encode_answer.checked(answer)
        parts = segments(answer.text, self._plan.hint_segments)
        return "".join(parts[: draw.binomial(len(parts), chance)]).rstrip(" ")  # a space belongs to the next word

    def _generate_from_unique_prompts(self) -> list[list[int]]:
        """Rows that are the expert's are not sampled."""
        if not self._answers:
            return super()._generate_from_unique_prompts()
        everyone = self._samples
        # One is sampled in any case: other processes may wait for this one's part of the model.
        wanted = [row for row in range(len(everyone)) if row not in self._answers] or [0]
        self._samples = [everyone[row] for row in wanted]
        try:
            sampled = dict(zip(wanted, super()._generate_from_unique_prompts(), strict=True))
        finally:
            self._samples = everyone
        return [{**sampled, **self._answers}[row] for row in range(len(everyone))]

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        output = super()._generate_single_turn(*args, **options)
        if not self._answers:
            return output
        ids, logps = output
        ids = [self._answers.get(row, sampled) for row, sampled in enumerate(ids)]
        if logps is not None:  # None in place of a number is TRL's way to leave a token out of the sampler's correction
            logps = [[None] * len(ids[row]) if row in self._answers else known for row, known in enumerate(logps)]
        return ids, logps

    def _generate(self, prompts: list) -> Any:
        found = super()._generate(prompts)
        if isinstance(self._plan, MixedRollout) and self.model.training:
            self._correct_lengths(found[1])
        return found

    def _correct_lengths(self, completion_ids: list[list[int]]) -> None:
        """Let the statistics of lengths be those of what was sampled."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        facts = [[len(ids), ids[-1] not in ends, row in self._answers] for row, ids in enumerate(completion_ids)]
        table = self.accelerator.gather(torch.tensor(facts, device=self.accelerator.device, dtype=torch.float))
        sampled = table[table[:, 2] == 0]
        if len(sampled) == len(table) or not len(sampled):
            return
        correct_lengths(self._metrics["train"], sampled[:, 0], sampled[:, 1] > 0)

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, ids: list) -> Tensor:
        """Rewards are of whole answers: with the hint that they began with."""
        if self._hints:
            prompts = [prompt[:-1] if hint else prompt for prompt, hint in zip(prompts, self._hints, strict=True)]
            completions = [
                [{**completion[0], "content": hint + completion[0]["content"]}, *completion[1:]]
                for completion, hint in zip(completions, self._hints, strict=True)
            ]
        return super()._calculate_rewards(inputs, prompts, completions, ids)

    def _mark_answers(self, output: dict[str, Any]) -> None:
        """Tell the loss which rows are the expert's, and the logs which are not."""
        marks = torch.zeros(len(output["advantages"]), 1, dtype=torch.bool)
        marks[list(self._answers)] = True
        output["is_expert"] = marks.to(self.accelerator.device)
        if isinstance(self._plan, SRFT):
            start = self.accelerator.process_index * len(marks)
            output["verdict"] = self._verdicts()[start : start + len(marks), None]
        self._correct_rewards(self.accelerator.gather(output["is_expert"])[:, 0])

    def _verdicts(self) -> Tensor:
        """(all rows,) 1 for a right answer, -1 for a wrong one, 0 where the reward that decides does not apply."""
        values = self._reward_table[:, self._judge]
        return torch.where(values > self._plan.correct_above, 1.0, -1.0).masked_fill(values.isnan(), 0.0)

    def _correct_rewards(self, expert: Tensor) -> None:
        """Let the logged rewards be those of what was sampled, and log the expert's beside them."""
        metrics = self._metrics["train"]
        metrics["expert/share"].append(expert.float().mean().item())
        if not expert.any():
            return
        own = self._reward_table.masked_fill(expert[:, None], torch.nan)
        total = self._total(self._reward_table)
        sampled = total.masked_fill(expert, torch.nan)
        metrics["expert/reward"].append(total[expert].nanmean().item())
        names = [f"rewards/{name}/" for name in self.reward_func_names]
        for mean, deviation, values in [
            *((f"{name}mean", f"{name}std", own[:, n]) for n, name in enumerate(names)),
            ("reward", "reward_std", sampled),
        ]:
            metrics[mean][-1] = values.nanmean().item()
            metrics[deviation][-1] = nanstd(values[None]).item()

    def _rescue(self, inputs: Rows, output: dict[str, Any]) -> None:
        """Put the expert's answer in place of all completions of a prompt that has too few right ones."""
        right = self._verdicts().view(-1, self.num_generations) > 0
        chosen = needs_sft(right, self._plan.rescue_at).tolist()
        swapped: dict[int, list[int]] = {}
        silent: list[int] = []
        for row, record in enumerate(inputs):
            group, turn = self._place(inputs, row)
            answers = expert_answers(record) if chosen[group] else []
            if answers and turn == self.num_generations - 1:
                swapped[row] = self._encode_answer.checked(answers[self._draw(group).integers(len(answers))])
            elif answers:
                silent.append(row)
        replace_completions(output, swapped, silent, self._tokenizer.pad_token_id)
        # A mean over rows gives a prompt the weight of all its rows, of which one is left.
        weight = 1.0 if self.loss_type == "dapo" else float(self.num_generations)
        output["weight"] = torch.full_like(output["is_expert"], 1, dtype=torch.float) * weight
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()
        count = torch.tensor([len(swapped)], device=self.accelerator.device)
        share = self.accelerator.gather(count).sum().item() / len(chosen)
        self._metrics["train"]["expert/share_of_prompts"].append(share)

    @property
    def _skips_silent(self) -> bool:
        """With verdicts, rows have a loss where their group's rewards are equal too."""
        return super()._skips_silent and not isinstance(self._plan, SRFT)


def replace_completions(
    output: dict[str, Any], swapped: Mapping[int, list[int]], silent: Sequence[int], pad: int
) -> None:
    """Change a rollout: rows get the expert's tokens and the advantage 1, others no token that counts, and none.

    Their log-probabilities under older policies, which nobody has, are 0, and weights of the sampler 1.
    """
    ids = output["completion_ids"]
    width = max([ids.size(1), *map(len, swapped.values())])
    for name in (*PER_TOKEN, *OF_SAMPLER):
        value = output.get(name)
        if value is not None and value.size(1) == ids.size(1):
            fill = pad if name == "completion_ids" else 0
            output[name] = torch.nn.functional.pad(value, (0, width - ids.size(1)), value=fill)
    rows = list(swapped)
    for name in (*PER_TOKEN, *OF_SAMPLER):
        if output.get(name) is not None:
            output[name][rows] = 1 if name == "importance_sampling_ratio" else 0
    for row, tokens in swapped.items():
        output["completion_ids"][row] = pad
        output["completion_ids"][row, : len(tokens)] = torch.tensor(tokens, device=ids.device)
        output["completion_mask"][row, : len(tokens)] = 1
    output["completion_mask"][list(silent)] = 0
    output["advantages"] = output["advantages"].clone()
    output["advantages"][list(silent)] = 0.0
    output["advantages"][rows] = 1.0
    output["is_expert"] = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    output["is_expert"][rows] = True


def _begun(row: dict[str, Any], hint: str) -> dict[str, Any]:
    """The row with the hint as the beginning of the assistant's turn.

    Raises:
        ValueError: its prompt is plain text, which has no turns.
    """
    if not hint:
        return row
    prompt = row["prompt"]
    if isinstance(prompt, str):
        raise ValueError(f"{row.get('where') or 'a row'}: hints need a prompt of chat messages, got plain text")
    is_text = isinstance(prompt[-1]["content"], str)
    return {
        **row,
        "prompt": [
            *prompt,
            {"role": "assistant", "content": hint if is_text else [{"type": "text", "text": hint}]},
        ],
    }
