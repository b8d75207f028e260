"""Dynamic sampling (DAPO, arXiv:2503.14476): groups whose rewards do not vary are replaced by others that do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import IterableDataset
from torch import Tensor

from vlm_grpo.algorithms.advantages import NO_SPREAD, nanstd
from vlm_grpo.rollouts.batch import concat_rollouts, select_rows
from vlm_grpo.rollouts.encoder import MEDIA_KINDS
from vlm_grpo.trainers.rollout_state import restore_pixels, strip_pixels
from vlm_grpo.trainers.state_file import load_state, save_state, state_path

logger = logging.getLogger(__name__)


class Resampling:
    """Mixin over `VLMTrainerMixin`: samples further prompts until a rollout is full of groups with a signal.

    What is left over begins the next rollout. Its completions are then those of an older policy, which their old
    log-probabilities say.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._rounds = getattr(self.args, "dynamic_sampling", 0)
        self._left_over: dict[str, Any] | None = None
        self._order: tuple[int, Tensor] | None = None  # of which pass, and the numbers of the rows
        self._drawn = 0  # prompts beyond those of the data loader, on all processes
        if self._rounds:
            self._check_resampling()

    def _check_resampling(self) -> None:
        local = self.args.generation_batch_size // self.accelerator.num_processes
        name = self.args.dynamic_sampling_reward
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError("--dynamic_sampling draws further rows by number, which --streaming cannot; leave one out")
        if self._is_stock:
            raise ValueError(
                "--dynamic_sampling does not go with a rollout function, or with a model that reads no images"
            )
        if local % self.num_generations:
            raise ValueError(
                f"--dynamic_sampling needs whole groups on every process: its {local} rows of a rollout must be a "
                f"multiple of --num_generations {self.num_generations}"
            )
        if name is not None and name not in self.reward_func_names:
            raise ValueError(
                f"--dynamic_sampling_reward must be one of {', '.join(self.reward_func_names)}, got {name!r}"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not (self._rounds and self.model.training):
            return super()._generate_and_score_completions(inputs)
        wanted = len(inputs) // self.num_generations
        sampled, found = [], [] if self._left_over is None else [self._left_over]
        for rows in self._rows_of_rounds(inputs):
            rollout = super()._generate_and_score_completions(rows)
            rollout["old_per_token_logps"] = self._old_logps(rollout)
            varies = self._varies()
            sampled.append((rollout, varies))
            found.append(select_rows(rollout, self._rows_of(varies.nonzero().flatten().tolist())))
            if self._fewest(found) >= wanted:
                break
        groups = sum(len(rollout["completion_ids"]) for rollout in found) // self.num_generations
        self._log_rounds(sampled)
        if groups < wanted:
            found += [self._without_signal(sampled, wanted - groups)]
        whole = concat_rollouts(found, self._tokenizer.pad_token_id)
        rest = list(range(wanted * self.num_generations, len(whole["completion_ids"])))
        self._left_over = select_rows(whole, rest) if rest else None
        return self._completed(select_rows(whole, list(range(wanted * self.num_generations))))

    def _rows_of_rounds(self, inputs: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """The rows of the data loader, then as many of further prompts for each round that is allowed."""
        yield inputs
        prompts = len(inputs) // self.num_generations
        for _ in range(self._rounds):
            here = self._drawn + self.accelerator.process_index * prompts
            self._drawn += self.accelerator.num_processes * prompts
            rows = [self.train_dataset[self._number_of(place)] for place in range(here, here + prompts)]
            yield [row for row in rows for _ in range(self.num_generations)]

    def _number_of(self, place: int) -> int:
        """The row of a place in an endless order of its own: every pass over the data is shuffled anew."""
        number, inside = divmod(place, len(self.train_dataset))
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed(self.args.seed + 1 + number)
            self._order = number, torch.randperm(len(self.train_dataset), generator=generator)
        return self._order[1][inside].item()

    def _varies(self) -> Tensor:
        """(groups of this process,) whether the rewards of the rollout that was just scored differ in each."""
        name = self.args.dynamic_sampling_reward
        table = self._reward_table
        values = self._total(table) if name is None else table[:, self.reward_func_names.index(name)]
        everywhere = (nanstd(values.view(-1, self.num_generations)) > NO_SPREAD).flatten()
        size = len(everywhere) // self.accelerator.num_processes
        return everywhere[self.accelerator.process_index * size :][:size].cpu()

    def _rows_of(self, groups: list[int]) -> list[int]:
        size = self.num_generations
        return [group * size + row for group in groups for row in range(size)]

    def _fewest(self, rollouts: list[dict[str, Any]]) -> int:
        """The number of groups on the process that has the fewest."""
        rows = sum(len(rollout["completion_ids"]) for rollout in rollouts)
        counts = torch.tensor([rows // self.num_generations], device=self.accelerator.device)
        return self.accelerator.gather(counts).min().item()

    def _without_signal(self, sampled: list[tuple[dict[str, Any], Tensor]], count: int) -> dict[str, Any]:
        """Groups that fill what is missing; they only make the rollout whole."""
        logger.warning(
            "--dynamic_sampling: after %d rounds %d groups of a rollout still have equal rewards; they are kept and "
            "have no effect. More rounds, easier or harder prompts, or a finer reward help",
            len(sampled) - 1,
            count,
        )
        same = [
            select_rows(rollout, self._rows_of((~varies).nonzero().flatten().tolist())) for rollout, varies in sampled
        ]
        whole = concat_rollouts(same, self._tokenizer.pad_token_id)
        return select_rows(whole, list(range(count * self.num_generations)))

    def _completed(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """What TRL counts over all processes, for the rows that were chosen."""
        mask = rollout["completion_mask"] * rollout.get("tool_mask", 1)
        rollout["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        anywhere = self._gather_media({kind for sample in rollout["samples"] for kind in sample.media})
        return rollout | {f"{kind}_anywhere": torch.tensor(anywhere[n]) for n, kind in enumerate(MEDIA_KINDS)}

    def _log_rounds(self, sampled: list[tuple[dict[str, Any], Tensor]]) -> None:
        metrics = self._metrics["train"]
        metrics["dynamic_sampling/rounds"].append(float(len(sampled)))
        metrics["dynamic_sampling/share_with_signal"].append(torch.cat([v for _, v in sampled]).float().mean().item())

    def _save_rng_state(self, output_dir: str) -> None:
        if self._rounds:
            held = self._left_over and strip_pixels(self._left_over)
            save_state(_file_of(output_dir, self.args.process_index), {"drawn": self._drawn, "left_over": held})
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if not self._rounds or checkpoint is None or not _file_of(checkpoint, self.args.process_index).is_file():
            return
        content = load_state(_file_of(checkpoint, self.args.process_index))
        self._drawn, held = content["drawn"], content["left_over"]
        if held is not None:
            (held,) = restore_pixels([held], self.encoder)
            held = send_to_device(held, self.accelerator.device, skip_keys="samples")
        self._left_over = held


def _file_of(checkpoint: str, rank: int) -> Path:
    return state_path(checkpoint, f"left_over_{rank}")
