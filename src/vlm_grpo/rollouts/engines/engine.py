"""What a rollout engine gives: completions of encoded prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from vlm_grpo.rollouts.encoder import EncodedPrompt


class Generation(NamedTuple):
    """Completions, one for each prompt, up to and with the token that ends them.

    Attributes:
        ids: tokens.
        logprobs: of these tokens as the engine sampled them, None for a token without one; None where the engine is
            the policy itself.
    """

    ids: list[list[int]]
    logprobs: list[list[float | None]] | None = None


class RolloutEngine(Protocol):
    """Completes prompts with the weights of the policy."""

    needs_whole_groups: bool  # whether every completion of a group must be asked for, also those that are replaced

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt; rows that continue the same prompt share its object.

        Args:
            prompts: one for each completion.
            max_new_tokens: of a completion; None is the limit of the run.
            is_greedy: whether the most likely token is taken instead of a sampled one.
        """
        ...
