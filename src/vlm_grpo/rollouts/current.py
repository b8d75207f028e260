"""The state of the rollout in progress, between TRL's methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vlm_grpo.rollouts.encoder import MEDIA_KINDS, EncodedPrompt
from vlm_grpo.rollouts.trajectory import Trajectory


@dataclass
class CurrentRollout:
    """The rollout that is being sampled and scored: what TRL's methods cannot pass from one to the next.

    Attributes:
        prompts: of the rows; once environments are done, with the images of tools.
        media_anywhere: which of MEDIA_KINDS the rows of any process show.
        trajectories: of the rows, where there are tools or environments.
        turns: the assistant's whole turn in each row, as rewards see it.
        hints: with which the answer of each row begins; empty without hints.
        demonstrations: completions that are not sampled, by row.
        rewards: (all B, F).
        greedy_rewards: (B,) of the greedy completion of each row's prompt, where the algorithm compares with it.
    """

    prompts: list[EncodedPrompt] = field(default_factory=list)
    media_anywhere: list[bool] = field(default_factory=lambda: [False for _ in MEDIA_KINDS])
    trajectories: list[Trajectory] = field(default_factory=list)
    turns: list[Any] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    demonstrations: dict[int, list[int]] = field(default_factory=dict)
    rewards: Tensor | None = None
    greedy_rewards: Tensor | None = None

    @property
    def initial_prompts(self) -> list[EncodedPrompt]:
        """The prompts before any turn."""
        return [each.prompt for each in self.trajectories] or self.prompts

    @property
    def openings(self) -> list[str]:
        """The part of each row's last turn that the prompt contains already."""
        return [each.opening for each in self.trajectories] or [prompt.opening for prompt in self.prompts]

    @property
    def images(self) -> list[list[Any]]:
        """The decoded images of each row: those of its prompt, and those of tools."""
        if self.trajectories:
            return [[*each.prompt.images, *each.images] for each in self.trajectories]
        return [list(prompt.images) for prompt in self.prompts]
