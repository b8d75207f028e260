"""A run of the quickstart: its settings, folders and timings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


STAGES = ("digits", "warm start", "before", "training", "after", "report")


@dataclass(frozen=True)
class QuickstartSettings:
    """Settings for both trainers; the report lists every value."""

    warm_steps: int = 300
    warm_batch: int = 32
    steps: int = 350
    batch: int = 64
    num_generations: int = 8
    learning_rate: float = 2e-4


@dataclass
class QuickstartRun:
    """A run of the quickstart: its settings, its folders, and the duration of each stage."""

    trainer: str
    seed: int
    folder: Path
    settings: QuickstartSettings = field(default_factory=QuickstartSettings)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def warm(self) -> Path:
        return self.folder / "warm_start"

    @property
    def trained(self) -> Path:
        return self.folder / self.trainer

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[tqdm]:
        """Show a progress bar during a stage and record its duration."""
        from tqdm import tqdm

        started = time.monotonic()
        with tqdm(total=total, unit=unit, desc=f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name:<10}") as bar:
            yield bar
        self.seconds[name] = time.monotonic() - started
