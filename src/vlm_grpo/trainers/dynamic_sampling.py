"""Dynamic sampling (DAPO, arXiv:2503.14476): groups whose rewards do not vary are replaced by others that do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import IterableDataset
from torch import Tensor

from vlm_grpo.algorithms.group import NO_SPREAD, nanstd
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.rollout_state import restore_pixels, strip_pixels

logger = logging.getLogger(__name__)


class DynamicSampler:
    """Samples further prompts until a rollout is full of groups with a signal.

    What is left over begins the next rollout. Its completions are then those of an older policy, which their old
    log-probabilities say.

    Args:
        rounds: most further rounds for one rollout.
        dataset: rows of the training.
        args: of the training.
        pad_token_id: pads completions.
        ranks: collectives of the run.
    """

    def __init__(self, rounds: int, dataset: Any, args: Any, pad_token_id: int, ranks: Ranks) -> None:
        self.rounds, self.dataset, self.args, self.pad_token_id, self.ranks = rounds, dataset, args, pad_token_id, ranks
        self.left_over: RolloutBatch | None = None
        self.drawn = 0  # prompts beyond those of the data loader, on all processes
        self._order: tuple[int, Tensor] | None = None  # of which pass, and the numbers of the rows

    def collect(
        self,
        rows: list[dict[str, Any]],
        sample: Callable[[list[dict[str, Any]]], tuple[RolloutBatch, Tensor]],
        metrics: Mapping[str, list[float]],
    ) -> RolloutBatch:
        """Return a rollout of as many groups as `rows` have.

        Args:
            rows: of the data loader.
            sample: from rows to their rollout, and the (all B,) rewards whose spread within a group is a signal.
            metrics: of training.
        """
        wanted = len(rows) // self.args.num_generations
        sampled, found = [], [] if self.left_over is None else [self.left_over]
        for each in self._rows_of_rounds(rows):
            rollout, rewards = sample(each)
            varies = self._varies(rewards)
            sampled.append((rollout, varies))
            found.append(rollout.select(self._rows_of(varies.nonzero().flatten().tolist())))
            if self._fewest(found) >= wanted:
                break
        metrics["dynamic_sampling/rounds"].append(float(len(sampled)))
        share = torch.cat([varies for _, varies in sampled]).float().mean().item()
        metrics["dynamic_sampling/share_with_signal"].append(share)
        groups = sum(len(rollout) for rollout in found) // self.args.num_generations
        if groups < wanted:
            found += [self._without_signal(sampled, wanted - groups)]
        whole = RolloutBatch.concat(found, self.pad_token_id)
        end = wanted * self.args.num_generations
        rest = list(range(end, len(whole)))
        self.left_over = whole.select(rest) if rest else None
        return self._completed(whole.select(list(range(end))))

    def _rows_of_rounds(self, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """The rows of the data loader, then as many of further prompts for each round that is allowed."""
        yield rows
        size = self.args.num_generations
        prompts = len(rows) // size
        for _ in range(self.rounds):
            start = self.drawn + self.ranks.index * prompts
            self.drawn += self.ranks.count * prompts
            further = [self.dataset[self._number_of(place)] for place in range(start, start + prompts)]
            yield [row for row in further for _ in range(size)]

    def _number_of(self, place: int) -> int:
        """The row of a place in an endless order of its own: every pass over the data is shuffled anew."""
        number, inside = divmod(place, len(self.dataset))
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed(self.args.seed + 1 + number)
            self._order = number, torch.randperm(len(self.dataset), generator=generator)
        return self._order[1][inside].item()

    def _varies(self, rewards: Tensor) -> Tensor:
        """(groups of this process,) whether the rewards of each group differ."""
        everywhere = (nanstd(rewards.view(-1, self.args.num_generations)) > NO_SPREAD).flatten()
        return self.ranks.local_rows(everywhere, len(everywhere) // self.ranks.count).cpu()

    def _rows_of(self, groups: list[int]) -> list[int]:
        size = self.args.num_generations
        return [group * size + row for group in groups for row in range(size)]

    def _fewest(self, rollouts: list[RolloutBatch]) -> int:
        """The number of groups on the process that has the fewest."""
        rows = sum(len(rollout) for rollout in rollouts)
        counts = torch.tensor([rows // self.args.num_generations], device=self.ranks.accelerator.device)
        return self.ranks.gather(counts).min().item()

    def _without_signal(self, sampled: list[tuple[RolloutBatch, Tensor]], count: int) -> RolloutBatch:
        """Groups that fill what is missing; they only make the rollout whole."""
        logger.warning(
            "--dynamic_sampling: after %d rounds %d groups of a rollout still have equal rewards; they are kept and "
            "have no effect. More rounds, easier or harder prompts, or a finer reward help",
            len(sampled) - 1,
            count,
        )
        same = [rollout.select(self._rows_of((~varies).nonzero().flatten().tolist())) for rollout, varies in sampled]
        whole = RolloutBatch.concat(same, self.pad_token_id)
        return whole.select(list(range(count * self.args.num_generations)))

    def _completed(self, rollout: RolloutBatch) -> RolloutBatch:
        """What TRL counts over all processes, for the rows that were chosen."""
        rollout.num_items_in_batch = self.ranks.gather(rollout.loss_mask.sum()).sum()
        rollout.media_anywhere = self.ranks.any_media({kind for prompt in rollout.prompts for kind in prompt.media})
        return rollout

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, without pixels."""
        return {
            "drawn": self.drawn,
            "left_over": None if self.left_over is None else strip_pixels(self.left_over.to_trl_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any], encoder: PromptEncoder) -> None:
        """Go on where a checkpoint was written; the images of what was left over are processed again."""
        self.drawn, left_over = state["drawn"], state["left_over"]
        if left_over is not None:
            (left_over,) = restore_pixels([left_over], encoder)
            left_over = send_to_device(left_over, self.ranks.accelerator.device, skip_keys="samples")
        self.left_over = None if left_over is None else RolloutBatch.from_trl_dict(left_over)


def check_dynamic_sampling(trainer: Any, is_stock: bool) -> None:
    """Refuse what dynamic sampling cannot be combined with.

    Raises:
        ValueError: says what, and what to do instead.
    """
    args = trainer.args
    local = args.generation_batch_size // trainer.accelerator.num_processes
    name = args.dynamic_sampling_reward
    if isinstance(trainer.train_dataset, IterableDataset):
        raise ValueError("--dynamic_sampling draws further rows by number, which --streaming cannot; leave one out")
    if is_stock:
        raise ValueError("--dynamic_sampling does not go with a rollout function, or with a model that reads no images")
    if local % trainer.num_generations:
        raise ValueError(
            f"--dynamic_sampling needs whole groups on every process: its {local} rows of a rollout must be a "
            f"multiple of --num_generations {trainer.num_generations}"
        )
    if name is not None and name not in trainer.reward_func_names:
        raise ValueError(
            f"--dynamic_sampling_reward must be one of {', '.join(trainer.reward_func_names)}, got {name!r}"
        )
