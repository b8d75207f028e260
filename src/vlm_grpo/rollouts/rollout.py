"""The rollout of one process while it is sampled and scored; its tensors are in `RolloutBatch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm_grpo.records import Completion, Row
from vlm_grpo.rollouts.decoding import TurnDecoder, whole_turn
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.segment import with_segment
from vlm_grpo.rollouts.trajectory import Trajectory

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Rollout:
    """What was asked and what was sampled; each list has one entry for each completion, unless it is empty.

    Attributes:
        rows: of the data, with the hints and the observations of environments.
        prompts: encoded, before any completion.
        trajectories: where there are tools or environments.
        demonstrations: tokens of completions that are not sampled, by row.
        ids: tokens of the completions.
        logprobs: of these tokens as the engine sampled them; None where the engine is the policy itself.
        finish_reasons: why an engine ended each completion, "stop" or "length"; None where the last token tells.
        turns: the assistant's turns of each row, as rewards see them.
    """

    rows: list[Row]
    prompts: list[EncodedPrompt]
    trajectories: list[Trajectory] = field(default_factory=list)
    demonstrations: dict[int, list[int]] = field(default_factory=dict)
    ids: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float | None]] | None = None
    finish_reasons: list[str] | None = None
    turns: list[Completion] = field(default_factory=list)

    @property
    def scored_prompts(self) -> list[EncodedPrompt]:
        """The prompts as the loss needs them: with the images that tools showed."""
        return [with_segment(each.started_prompt, each.segment) for each in self.trajectories] or self.prompts

    @property
    def openings(self) -> list[str]:
        """What each row's last turn of the assistant began with before the model went on."""
        return [each.opening for each in self.trajectories] or [prompt.opening for prompt in self.prompts]

    @property
    def images(self) -> list[list[Image.Image]]:
        """The decoded images of each row: its prompt's, and what tools showed."""
        if self.trajectories:
            return [[*each.started_prompt.images, *each.images] for each in self.trajectories]
        return [list(prompt.images) for prompt in self.prompts]

    def add_turns(self, decode: TurnDecoder) -> None:
        """Decode the assistant's turns, with what the prompts began of them."""
        turns: list[Completion] = [each.messages_without_images for each in self.trajectories]
        self.turns = turns or whole_turns(self.prompts, self.ids, decode)


def whole_turns(prompts: Sequence[EncodedPrompt], ids: Sequence[list[int]], decode: TurnDecoder) -> list[Completion]:
    """Return the assistant's turn of each completion, with what its prompt began."""
    return [
        whole_turn(prompt.opening, decode(tokens), prompt.messages) for prompt, tokens in zip(prompts, ids, strict=True)
    ]
