"""What an algorithm is: settings of TRL's trainers, and functions where TRL has none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from vlm_grpo.algorithms.values import SHARED


@dataclass(frozen=True)
class Recipe:
    """What `--algorithm NAME` does. Settings are defaults: a configuration file and the command line win.

    Attributes:
        summary, formula, paper: one line each.
        settings: fields of the trainer's configuration.
        trainer: the trainer that runs it.
        mini_batches: optimizer steps that one rollout is cut into (`steps_per_generation` over
            `gradient_accumulation_steps`).
        advantage: (P, G) rewards to advantages; what it needs besides are its keyword-only parameters, `lengths` (P, G)
            and `greedy` (P,).
        is_advantage_trls: whether the trainer computes that advantage itself, from `settings`.
        choice: (B, C) advantages, log-probabilities and mask of a whole rollout to the tokens that the loss marks, from
            `token_masks.py`; `seed` is given where it is a parameter.
        drops_chosen: whether the chosen tokens get no gradient; else the objective finds them in its `marks`.
        objective: the loss of each token, from `losses.py`; None is TRL's.
        of_tokens: (B, C) rewards of tokens and mask to advantages; takes the place of `advantage` where tokens have
            rewards of their own, which is with a KL in the reward.
        credit: (B, C) rewards and values of tokens and mask to advantages and returns; with it a value model is
            trained, of the kind that the option `value_model` says.
        value_loss: (B, C) values, old values and returns to the loss of each value.
        unread: settings that the objective does not read.
        min_updates: fewest optimizer steps for each rollout.
        rewards: names and weights of rewards that belong to it, beside those that are asked for.
        is_on_policy: whether it is right for one update per rollout only.
        has_ratio: whether the loss weighs tokens by new over old probabilities.
        min_generations: fewest completions of a prompt.
        expert: what is done with an expert's answers, a plan of `expert.py`; None asks for none.
    """

    summary: str
    formula: str
    paper: str
    settings: Mapping[str, Any]
    trainer: str = "grpo"
    mini_batches: int = 1
    advantage: Callable[..., Tensor] | None = None
    is_advantage_trls: bool = True
    choice: Callable[..., Tensor] | None = None
    drops_chosen: bool = False
    objective: Callable[..., Tensor] | None = None
    of_tokens: Callable[[Tensor, Tensor], Tensor] | None = None
    credit: Callable[..., Any] | None = None
    value_loss: Callable[..., Tensor] | None = None
    unread: tuple[str, ...] = ()
    min_updates: int = 1
    rewards: Mapping[str, float] = field(default_factory=dict)
    is_on_policy: bool = False
    has_ratio: bool = True
    min_generations: int = 2
    expert: Any = None

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of what `algorithm_options` may set."""
        found = {} if self.expert is None else asdict(self.expert)
        for function in (self.advantage, self.choice, self.objective, self.credit, self.value_loss):
            parameters = inspect.signature(function).parameters.values() if function else ()
            found |= {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return found if self.credit is None else {**found, "value_model": SHARED}
