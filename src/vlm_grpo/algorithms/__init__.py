"""Algorithms by name: each is the published recipe in the settings of TRL's trainers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_grpo.table import Table


@dataclass(frozen=True)
class Recipe:
    """What `--algorithm NAME` sets, unless a configuration file or the command line says otherwise.

    `mini_batches` is the number of optimizer steps that one rollout is cut into (`steps_per_generation` over
    `gradient_accumulation_steps`); `trainer` the trainer that runs it.
    """

    summary: str
    paper: str
    settings: Mapping[str, Any]
    trainer: str = "grpo"
    mini_batches: int = 1


ALGORITHMS: Table[Recipe] = Table(
    "algorithm",
    {
        "grpo": Recipe(
            summary="reward minus the group's mean, over its spread; mean over the tokens of each completion",
            paper="arXiv:2402.03300",
            settings={
                "loss_type": "grpo",
                "scale_rewards": "group",
                "epsilon": 0.2,
                "beta": 0.04,
                "use_bias_correction_kl": False,
            },
        ),
        "dr_grpo": Recipe(
            summary="reward minus the group's mean, not divided by the spread; sum over tokens by a constant length",
            paper="arXiv:2503.20783",
            settings={"loss_type": "dr_grpo", "scale_rewards": "none", "epsilon": 0.2, "beta": 0.0},
        ),
        "gspo": Recipe(
            summary="one importance ratio per completion, clipped closely; four updates per rollout",
            paper="arXiv:2507.18071",
            settings={
                "loss_type": "grpo",
                "scale_rewards": "group",
                "importance_sampling_level": "sequence",
                "epsilon": 3e-4,
                "epsilon_high": 4e-4,
                "beta": 0.0,
            },
            mini_batches=4,
        ),
        "rloo": Recipe(
            summary="reward minus the mean of the other completions; the completion is one action",
            paper="arXiv:2402.14740",
            settings={"normalize_advantages": False},
            trainer="rloo",
        ),
    },
)


def recipe_settings(name: str, accumulation: int = 1) -> dict[str, Any]:
    """The settings of a recipe for a number of gradient accumulation steps.

    Raises:
        KeyError: an unknown algorithm.
    """
    recipe = ALGORITHMS[name]
    several = {"steps_per_generation": recipe.mini_batches * accumulation} if recipe.mini_batches > 1 else {}
    return {**recipe.settings, **several}
