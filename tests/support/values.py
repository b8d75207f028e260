"""PPO trainers' rollouts, and their values by transformers' own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FAST = {"learning_rate": 2e-3, "value_learning_rate": 2e-2}
TWO_UPDATES = {"steps_per_generation": 2, **FAST}


def head_of(trainer: Any) -> Tensor:
    return torch.cat([each.detach().flatten() for each in trainer.critic.head.parameters()])


def rollouts_of(trainer: Any) -> list[dict[str, Any]]:
    """Train; every rollout, with the head at that time and the hidden states of each row, computed one by one."""
    seen: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions

    def watched(inputs: list) -> dict[str, Any]:
        output = generate(inputs)
        seen.append({**output, "expected": [expected_values(trainer, output, row) for row in range(len(inputs))]})
        return output

    trainer._generate_and_score_completions = watched
    trainer.train()
    return seen


@torch.no_grad()
def expected_values(trainer: Any, output: dict[str, Any], row: int) -> Tensor:
    """(length,) values by transformers' own forward of one row without padding."""
    sample = output["samples"][row]
    count = int(output["completion_mask"][row].sum())
    ids = [*sample.input_ids, *output["completion_ids"][row, :count].tolist()]
    per_token = {name: torch.tensor([values + [0] * count]) for name, values in sample.per_token.items()}
    fields = {"input_ids": torch.tensor([ids]), **per_token, **sample.visual}
    return values_of(trainer, fields, count)


@torch.no_grad()
def values_of(trainer: Any, fields: dict[str, Any], count: int) -> Tensor:
    """The values of the states before the last `count` tokens of one row."""
    own = getattr(trainer.critic.head, "backbone", None)
    if own is not None:
        hidden = own(**fields).last_hidden_state[0]
    else:
        hidden = trainer.model(**fields, output_hidden_states=True).hidden_states[-1][0]
    return hidden[-count - 1 : -1] @ trainer.critic.head.weight[0] + trainer.critic.head.bias
