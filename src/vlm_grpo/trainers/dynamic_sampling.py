"""Dynamic sampling (DAPO, arXiv:2503.14476): groups whose rewards do not vary are replaced by others that do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from datasets import IterableDataset
from torch import Tensor

from vlm_grpo.algorithms.group import NO_SPREAD, nanstd
from vlm_grpo.records import Row
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.rollout_state import restore_pixels, strip_pixels
from vlm_grpo.trainers.state_file import FOLDER

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


class DynamicSampler:
    """Samples further prompts until a rollout consists of groups whose rewards vary.

    Surplus groups go into the next rollout. Their completions are then those of an older policy, as their old
    log-probabilities record.

    Args:
        rounds: maximum number of further rounds for one rollout.
        dataset: rows of the training.
        args: of the training.
        pad_token_id: pads completions.
        ranks: collectives of the run.
        encoder: encodes the prompts of restored surplus groups again.
    """

    state_file = f"{FOLDER}/left_over_{{rank}}.safetensors"

    def __init__(
        self, rounds: int, dataset: Dataset, args: Any, pad_token_id: int, ranks: Ranks, encoder: PromptEncoder
    ) -> None:
        self.rounds, self.dataset, self.args, self.pad_token_id, self.ranks = rounds, dataset, args, pad_token_id, ranks
        self.encoder = encoder
        self.left_over: RolloutBatch | None = None
        self.num_drawn = 0  # prompts beyond those of the data loader, on all processes
        self._order: tuple[int, Tensor] | None = None  # number of the pass, and its row numbers

    def collect(
        self,
        rows: list[Row],
        sample: Callable[[list[Row]], tuple[RolloutBatch, Tensor]],
        metrics: Mapping[str, list[float]],
    ) -> RolloutBatch:
        """Return a rollout of as many groups as `rows` have.

        Args:
            rows: of the data loader.
            sample: from rows to their rollout, and the (all B,) rewards that have to vary within a group.
            metrics: of training.
        """
        num_groups = len(rows) // self.args.num_generations
        sampled, selected = [], [] if self.left_over is None else [self.left_over]
        for each in self._rounds_of_rows(rows):
            rollout, rewards = sample(each)
            varies = self._varies(rewards)
            sampled.append((rollout, varies))
            selected.append(rollout.select(self._rows_of_groups(varies.nonzero().flatten().tolist())))
            if self._min_groups(selected) >= num_groups:
                break
        metrics["dynamic_sampling/rounds"].append(float(len(sampled)))
        fraction = torch.cat([varies for _, varies in sampled]).float().mean().item()
        metrics["dynamic_sampling/share_with_signal"].append(fraction)
        groups = sum(len(rollout) for rollout in selected) // self.args.num_generations
        if groups < num_groups:
            selected += [self._without_signal(sampled, num_groups - groups)]
        whole = RolloutBatch.concat(selected, self.pad_token_id)
        end = num_groups * self.args.num_generations
        rest = list(range(end, len(whole)))
        self.left_over = whole.select(rest) if rest else None
        return self._with_totals(whole.select(list(range(end))))

    def _rounds_of_rows(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Yield the rows of the data loader, then as many of further prompts for each allowed round."""
        yield rows
        size = self.args.num_generations
        prompts = len(rows) // size
        for _ in range(self.rounds):
            start = self.num_drawn + self.ranks.index * prompts
            self.num_drawn += self.ranks.count * prompts
            further = [self.dataset[self._row_number(position)] for position in range(start, start + prompts)]
            yield [row for row in further for _ in range(size)]

    def _row_number(self, position: int) -> int:
        """Return the row at a position of an infinite order, in which every pass over the data is shuffled again."""
        number, inside = divmod(position, len(self.dataset))
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed(self.args.seed + 1 + number)
            self._order = number, torch.randperm(len(self.dataset), generator=generator)
        return int(self._order[1][inside])

    def _varies(self, rewards: Tensor) -> Tensor:
        """Return (groups of this process,): whether the rewards of each group differ."""
        everywhere = (nanstd(rewards.view(-1, self.args.num_generations)) > NO_SPREAD).flatten()
        return self.ranks.local_rows(everywhere, len(everywhere) // self.ranks.count).cpu()

    def _rows_of_groups(self, groups: list[int]) -> list[int]:
        size = self.args.num_generations
        return [group * size + row for group in groups for row in range(size)]

    def _min_groups(self, rollouts: list[RolloutBatch]) -> int:
        """Return the number of groups on the process that has the fewest."""
        rows = sum(len(rollout) for rollout in rollouts)
        counts = torch.tensor([rows // self.args.num_generations], device=self.ranks.accelerator.device)
        return int(self.ranks.gather(counts).min())

    def _without_signal(self, sampled: list[tuple[RolloutBatch, Tensor]], count: int) -> RolloutBatch:
        """Return groups with equal rewards, which only complete the rollout."""
        logger.warning(
            "--dynamic_sampling: after %d rounds %d groups of a rollout still have equal rewards; they are kept and "
            "have no effect. More rounds, easier or harder prompts, or a finer reward help",
            len(sampled) - 1,
            count,
        )
        same = [
            rollout.select(self._rows_of_groups((~varies).nonzero().flatten().tolist())) for rollout, varies in sampled
        ]
        whole = RolloutBatch.concat(same, self.pad_token_id)
        return whole.select(list(range(count * self.args.num_generations)))

    def _with_totals(self, rollout: RolloutBatch) -> RolloutBatch:
        """Set what TRL counts over all processes, for the selected rows."""
        rollout.num_items_in_batch = self.ranks.gather(rollout.loss_mask.sum()).sum()
        rollout.media_anywhere = self.ranks.any_media(
            {kind for prompt in rollout.prompts or () for kind in prompt.media}
        )
        return rollout

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, without pixels."""
        return {
            "drawn": self.num_drawn,
            "left_over": None if self.left_over is None else strip_pixels(self.left_over.to_trl_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Restore the state of a checkpoint; the images of surplus groups are processed again."""
        self.num_drawn, left_over = state["drawn"], state["left_over"]
        if left_over is not None:
            (left_over,) = restore_pixels([left_over], self.encoder)
            left_over = send_to_device(left_over, self.ranks.accelerator.device, skip_keys="samples")
        self.left_over = None if left_over is None else RolloutBatch.from_trl_dict(left_over)


def check_dynamic_sampling(trainer: Any, has_rollout_func: bool) -> None:
    """Check that the settings can be combined with dynamic sampling.

    Raises:
        ValueError: says what, and what to do instead.
    """
    args = trainer.args
    local = args.generation_batch_size // trainer.accelerator.num_processes
    name = args.dynamic_sampling_reward
    if isinstance(trainer.train_dataset, IterableDataset):
        raise ValueError("--dynamic_sampling draws further rows by number, which --streaming cannot; leave one out")
    if has_rollout_func:
        raise ValueError(
            "--dynamic_sampling is incompatible with a rollout function, which samples by itself; leave one out"
        )
    if local % trainer.num_generations:
        raise ValueError(
            f"--dynamic_sampling needs whole groups on every process: its {local} rows of a rollout must be a "
            f"multiple of --num_generations {trainer.num_generations}"
        )
    if name is not None and name not in trainer.reward_func_names:
        raise ValueError(
            f"--dynamic_sampling_reward must be one of {', '.join(trainer.reward_func_names)}, got {name!r}"
        )
