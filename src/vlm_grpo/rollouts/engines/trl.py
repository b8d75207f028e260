"""Completions by TRL's own generation: continuous batching, for models of text alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_visual
from vlm_grpo.rollouts.engines.engine import Generation, NamedTensor

GenerateTurn = Callable[[list[list[int]], list[Any] | None, ModelInputs, int], Generation]


class TRLEngine:
    """Hands tokens to the generation of TRL's trainer.

    Args:
        generate_turn: from prompts' tokens, images, tensors of images and completions per prompt to completions.
        num_generations: returns the completions per prompt of the phase, training or evaluation.
    """

    needs_whole_groups = True  # TRL counts the completions of each prompt
    has_own_weights = False

    def __init__(self, generate_turn: GenerateTurn, num_generations: Callable[[], int]) -> None:
        self.generate_turn, self.num_generations = generate_turn, num_generations

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt.

        Raises:
            ValueError: a limit on tokens, or greedy decoding, which TRL's generation has no arguments for.
        """
        if max_new_tokens is not None or is_greedy:
            raise ValueError("generation by TRL takes neither a limit on tokens nor greedy decoding for one call")
        ids = [prompt.input_ids for prompt in prompts]
        return self.generate_turn(ids, None, collate_visual(prompts), self.num_generations())

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Do nothing: the policy itself generates."""

    def close(self) -> None:
        """Do nothing."""
