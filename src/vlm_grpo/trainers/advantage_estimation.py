"""Which completion earns what: the advantages of algorithms that TRL does not have, for the whole rollout at once."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

from torch import Tensor

from vlm_grpo.algorithms import Recipe, advantages, options_of
from vlm_grpo.algorithms.token_masks import covariances
from vlm_grpo.algorithms.values import token_rewards
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.trainers.kl_controller import as_trl


class Advantages(NamedTuple):
    """Those of all processes' completions (B,), or of their tokens (B, C) with the tokens' mask."""

    values: Tensor
    mask: Tensor | None = None

    def of_completions(self) -> list[float]:
        """Return one number for each completion: the mean over its tokens."""
        if self.mask is None:
            return self.values.tolist()
        return ((self.values * self.mask).sum(dim=1) / self.mask.sum(dim=1).clamp(min=1)).tolist()


class AdvantageEstimator:
    """Turns rewards into advantages as an algorithm says.

    Args:
        name: of the algorithm; None leaves TRL's advantages.
        recipe: what it is.
        options: `--algorithm_options`.
        args: of the training.
        ranks: collectives of the run.
    """

    def __init__(
        self, name: str | None, recipe: Recipe | None, options: Mapping[str, Any], args: Any, ranks: Ranks
    ) -> None:
        self.name, self.recipe, self.options, self.args, self.ranks = name, recipe, options, args, ranks
        formula = recipe.advantage if recipe is not None and not recipe.is_advantage_trls else None
        self.has_formula = formula is not None
        self._wants = set(signature(formula).parameters) if formula is not None else set()

    @property
    def needs_greedy(self) -> bool:
        """Whether it compares with the reward of each prompt's greedy completion."""
        return "greedy" in self._wants

    def estimate(
        self, rewards: Tensor, mask: Tensor, penalties: Tensor | None, greedy: Tensor | None
    ) -> Advantages | None:
        """Return the advantages of all processes' completions; None leaves TRL's.

        Args:
            rewards: (all B,) of all processes.
            mask: (B, C), 1 at this process's tokens that count.
            penalties: (B, C) what each token costs; None without a KL in the reward.
            greedy: (B,) reward of the greedy completion of each row's prompt.
        """
        if self.recipe is not None and self.recipe.of_tokens is not None and penalties is not None:
            local = token_rewards(self.ranks.local_rows(rewards, len(mask)), mask, penalties)
            values, everywhere = self.ranks.gather_padded(local, mask)
            return Advantages(self.recipe.of_tokens(values, everywhere), everywhere)
        if penalties is not None:
            rewards = rewards - self.ranks.gather(penalties.sum(dim=1))
        if self.has_formula:
            return Advantages(self._by_formula(rewards, mask, greedy))
        if penalties is None:
            return None
        return Advantages(as_trl(rewards, self.args.num_generations, self.args.scale_rewards))

    def _by_formula(self, rewards: Tensor, mask: Tensor, greedy: Tensor | None) -> Tensor:
        options = options_of(self.recipe.advantage, self.options)
        if "lengths" in self._wants:
            options["lengths"] = self.ranks.gather(mask.sum(dim=1))
        if greedy is not None:
            options["greedy"] = self.ranks.gather(greedy).view(-1, self.args.num_generations)[:, 0]
        return advantages(self.name, rewards, self.args.num_generations, **options)

    def token_mask(self, local: Tensor, old: Tensor, mask: Tensor, step: int) -> Tensor:
        """Return the (B, C) tokens that the algorithm marks, by what they are among those of all processes.

        Args:
            local: (B, C) advantages.
            old: (B, C) log-probabilities under the policy that sampled the tokens.
            mask: (B, C), 1 at tokens that count.
            step: the optimizer step.
        """
        choice = self.recipe.choice
        everywhere = self.ranks.gather_padded(local, old * mask, mask)
        options = options_of(choice, self.options)
        if "seed" in signature(choice).parameters:
            options["seed"] = self.args.seed + step
        chosen = choice(covariances(*everywhere), everywhere[2], **options)
        return self.ranks.local_rows(chosen, len(mask))[:, : mask.size(1)]
