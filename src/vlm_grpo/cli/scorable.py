"""Check that there are enough rows and that the rewards apply to them, before the model is loaded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import Row
from vlm_grpo.rewards import REWARDS
from vlm_grpo.rewards.adapter import split_spec
from vlm_grpo.rewards.applicability import FORMAT_REWARDS, is_applicable, requirement

if TYPE_CHECKING:
    from datasets import Dataset

    from vlm_grpo.trainers.config import VLMGRPOConfig


logger = logging.getLogger(__name__)

MOST_ROWS = 20_000  # rows to check; more only while a reward has not applied to any row
MOST_PLACES = 5


def check_rows_enough(training: VLMGRPOConfig, dataset: Dataset) -> None:
    """Check that there are enough rows for one rollout; otherwise nothing would be trained.

    Raises:
        UsageError: there are not; the message has the required number of rows and the flags that determine it.
    """
    if not isinstance(dataset, Sized):
        return
    batch, generations = training.generation_batch_size, training.num_generations
    if not batch or not generations:
        return
    prompts = batch // generations
    if len(dataset) < prompts:
        size = f"--per_device_train_batch_size {training.per_device_train_batch_size}"
        processes = f" on {training.world_size} processes" if training.world_size > 1 else ""
        steps = f"--steps_per_generation {training.steps_per_generation}"
        raise UsageError(
            f"{len(dataset)} rows are fewer than the {prompts} prompts of one rollout: nothing would be trained. "
            f"A rollout has {batch} completions ({size}{processes}, {steps}), {generations} of each prompt "
            f"(--num_generations). Use at least {prompts} rows, or reduce one of the first two flags"
        )


@dataclass
class Coverage:
    """Counts the rows that each reward applies to, and rows without any."""

    names: Sequence[str]
    rows: int = 0
    applied: Counter[str] = field(default_factory=Counter)
    without: dict[str, str] = field(default_factory=dict)  # the first row that a reward does not apply to
    unscored: list[str] = field(default_factory=list)

    def add(self, row: Row, number: int) -> None:
        """Count one row."""
        where = str(row.get("where") or f"row {number}")
        record, has_score = row["record"], False
        for name in self.names:
            try:
                does_apply = is_applicable(name, record)
            except ValueError as error:  # an invalid gold mask
                raise UsageError(f"{where}: reward {name!r}: {error}") from error
            has_score |= does_apply
            self.applied[name] += does_apply
            if not does_apply:
                self.without.setdefault(name, where)
        self.rows += 1
        if not has_score:
            self.unscored.append(where)


def check_scorable(specs: Sequence[str], dataset: Dataset) -> None:
    """Check that every reward applies to some row; warn about partially applicable rewards and unscored rows.

    User rewards and format rewards are not checked, and streams are not read.

    Raises:
        UsageError: a reward applies to no row; the message names its requirement.
    """
    reward_names = [split_spec(spec)[0] for spec in specs]
    names = [name for name in dict.fromkeys(reward_names) if name in REWARDS and name not in FORMAT_REWARDS]
    if not names or not isinstance(dataset, Sized):
        return
    coverage = Coverage(names)
    for number, row in enumerate(_rows(dataset, coverage)):
        if row.get("record") is None:
            return  # an environment generates the episode
        coverage.add(row, number)
    unearned = [name for name in names if not coverage.applied[name]]
    if unearned:
        raise UsageError(_unearned_message(unearned, specs, coverage.rows))
    for name, where in coverage.without.items():
        logger.warning(
            "reward %r applies to %s of %s rows: it needs %s (first row without it: %s)",
            *(name, f"{coverage.applied[name]:,}", f"{coverage.rows:,}", requirement(name), where),
        )
    if coverage.unscored and all(name in REWARDS for name in reward_names):
        places = ", ".join(coverage.unscored[:MOST_PLACES]) + (", ..." if len(coverage.unscored) > MOST_PLACES else "")
        logger.warning("%s rows are scored by format rewards only: %s", f"{len(coverage.unscored):,}", places)


def _rows(dataset: Dataset, coverage: Coverage) -> Iterable[Row]:
    """Yield the first rows; more while a reward has not applied to any."""
    for number in range(len(dataset)):
        if number >= MOST_ROWS and all(coverage.applied[name] for name in coverage.names):
            return
        yield dataset[number]


def _unearned_message(unearned: Sequence[str], specs: Sequence[str], rows: int) -> str:
    lines = [f"reward {name!r} applies to none of the {rows:,} rows: it needs {requirement(name)}" for name in unearned]
    usable = [spec for spec in specs if split_spec(spec)[0] not in unearned]
    hint = f"remove it (--reward_funcs {' '.join(usable)}), or" if usable else "choose other rewards, or"
    return "\n  ".join(["rewards that apply to no row:", *lines, f"{hint} add what is missing to the rows"])
