"""Environment `pick_image`: pick one of several images with a tool call."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.envs.environment import Environment, ToolError
from vlm_grpo.records import Block, ImageRef, NewRow

if TYPE_CHECKING:
    from datasets import IterableDataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Outcomes of an episode and their rewards: some for a valid call, by far the most for the correct image.
OUTCOMES = {"no_call": 0.0, "invalid_call": 0.05, "out_of_range": 0.1, "wrong": 0.2, "right": 1.0}


class PickImage(Environment):
    """Shows several images of a folder; the model calls `pick_image` with the number of the requested one.

    The images and the correct one depend only on the seed and the number of the episode, so that all completions
    of a group see the same. Images are named by their subject: `red_circle_2.png` is requested as "red circle".

    Args:
        data_root: folder with images, searched recursively.
        candidates_per_episode: number of images shown, each with another subject.
        fixed_correct_index: 0-based index of the correct image in every episode (0 is Fleet's default); -1 or None
            samples it in each episode, so that the model has to look at the images.
        seed: seed of the episodes; overridden by a row's own `seed`.

    Raises:
        ValueError: the folder has too few images, or the index is out of range.
    """

    MAKES_EPISODES = True

    def __init__(
        self,
        *,
        data_root: str = ".",
        candidates_per_episode: int = 4,
        fixed_correct_index: int | None = 0,
        seed: int = 0,
    ) -> None:
        if candidates_per_episode < 2:
            raise ValueError(f"--candidates_per_episode must be at least 2, got {candidates_per_episode}")
        if fixed_correct_index is not None and not -1 <= fixed_correct_index < candidates_per_episode:
            raise ValueError(
                f"--fixed_correct_index must be from 0 to {candidates_per_episode - 1}, or -1 for a random index, got "
                f"{fixed_correct_index}"
            )
        self.by_name = images_by_name(data_root)
        if len(self.by_name) < candidates_per_episode:
            raise ValueError(
                f"--data_root {data_root}: only {len(self.by_name)} subjects for --candidates_per_episode "
                f"{candidates_per_episode}; name images by their subject, such as red_circle_1.png"
            )
        self.candidates = candidates_per_episode
        self.fixed = None if fixed_correct_index == -1 else fixed_correct_index
        self.seed = seed
        self.done = False

    def reset(self, episode: int = 0, seed: int | None = None, **row: object) -> list[Block]:
        """Start the episode with a number."""
        draw = random.Random(f"{self.seed if seed is None else seed}/{episode}")
        names = draw.sample(sorted(self.by_name), self.candidates)
        random_index = draw.randrange(self.candidates)
        self.correct = random_index if self.fixed is None else self.fixed
        self.outcome, self.done = "no_call", False
        blocks: list[Block] = []
        for number, name in enumerate(names):
            image = ImageRef(draw.choice(self.by_name[name]), f"episode {episode}")
            blocks += [{"type": "text", "text": f"{number}: "}, {"type": "image", "image": image}]
        question = f"\nWhich image shows: {names[self.correct]}? Call pick_image with its number."
        return [*blocks, {"type": "text", "text": question}]

    def pick_image(self, index: int) -> str:
        """Pick one of the images.

        Args:
            index: The number of the image, from 0.
        """
        if isinstance(index, bool) or not isinstance(index, int):
            raise ToolError(f"index must be a whole number, got {index!r}")
        self.done = True
        if not 0 <= index < self.candidates:
            self.outcome = "out_of_range"
            raise ToolError(f"index must be from 0 to {self.candidates - 1}, got {index}")
        self.outcome = "right" if index == self.correct else "wrong"
        return self.outcome

    def failed(self, name: str, problem: str) -> None:
        """Record an invalid tool call."""
        if self.outcome == "no_call":
            self.outcome = "invalid_call"

    def get_reward(self) -> float:
        """Return 1 for the correct image, less for a wrong one, an invalid number, or an invalid call."""
        return OUTCOMES[self.outcome]

    def metrics(self) -> dict[str, float]:
        """Return the outcome of the episode, one-hot."""
        return {"success" if name == "right" else name: float(name == self.outcome) for name in OUTCOMES}


@cache
def images_by_name(data_root: str) -> dict[str, list[str]]:
    """Return the image files below a folder, by subject.

    Raises:
        ValueError: there is no such folder.
    """
    if not Path(data_root).is_dir():
        raise ValueError(f"--data_root {data_root}: no such folder")
    by_name: dict[str, list[str]] = {}
    for path in sorted(Path(data_root).rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            by_name.setdefault(subject_of(path), []).append(str(path))
    return by_name


def subject_of(path: Path) -> str:
    """Return an image's subject from its file name: `red_circle_2.png` is a "red circle"."""
    return re.sub(r"[\s_-]*\d*$", "", path.stem).replace("_", " ").replace("-", " ").strip() or path.stem


def repeatable_episodes(seed: int = 0, first: int = 0) -> IterableDataset:
    """Return infinite rows for environments that generate episodes by number; a resumed run continues with them.

    Args:
        seed: of the episodes.
        first: number of the first episode.
    """
    from vlm_grpo.data.dataset import iterable_dataset

    return iterable_dataset(partial(_rows, seed, first))


def _rows(seed: int, first: int) -> Iterator[NewRow]:
    for episode in count(first):
        yield {"prompt": [], "episode": episode, "seed": seed, "where": f"episode {episode}"}
