"""What a rollout engine does: it completes encoded prompts, and takes over the weights of the policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from vlm_grpo.rollouts.encoder import EncodedPrompt

NamedTensor = tuple[str, Tensor]


class Generation(NamedTuple):
    """Completions, one for each prompt, up to and with the token that ends them.

    Attributes:
        ids: tokens.
        logprobs: of these tokens as the engine sampled them, None for a token without one; None where the engine is
            the policy itself.
        finish_reasons: "stop" or "length" for each completion; None where the last token alone tells.
    """

    ids: list[list[int]]
    logprobs: list[list[float | None]] | None = None
    finish_reasons: list[str] | None = None


class RolloutEngine(Protocol):
    """Completes prompts with the weights of the policy.

    Every process of a run has one. All of them call `update_weights` together; each calls `generate` for its own rows.
    """

    needs_whole_groups: bool  # whether every completion of a group must be asked for, also those that are replaced
    has_own_weights: bool  # whether the weights are a copy, which `update_weights` renews

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

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Take over the weights of the policy, and forget every cache that was computed with the former ones.

        Args:
            weights: names as in a checkpoint and whole tensors. Iterating may gather a sharded parameter at a time, so
                every process has to iterate to the end, also one whose engine does not need them.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds: memory, connections, files. It cannot generate afterwards."""
        ...
