"""Algorithms by name: each is the published recipe in the settings of TRL's trainers, and what TRL does not have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.algorithms.recipe import Recipe
from vlm_grpo.algorithms.recipes import RECIPES
from vlm_grpo.import_utils import is_file_spec, load_from_file
from vlm_grpo.registry import Registry

__all__ = [
    "ALGORITHMS",
    "Recipe",
    "advantages",
    "canonical_name",
    "find_algorithm",
    "options_of",
    "recipe_settings",
    "register_algorithm",
]

ALGORITHMS: Registry[Recipe] = Registry("algorithm", RECIPES)


def register_algorithm(
    name: str,
    *,
    advantage: Callable[..., Tensor] | None = None,
    objective: Callable[..., Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    summary: str = "",
    **fields: Any,
) -> Recipe:
    """List an algorithm of one's own, for `--algorithm` and for configurations.

    Args:
        name: a new one.
        advantage: (P, G) rewards to advantages, as those in `advantages.py`; None is TRL's.
        objective: `LossInputs` to the loss of each token, as those in `losses.py`; None is TRL's.
        settings: fields of the trainer's configuration; without them a mean over all tokens of a step and no KL.
        summary: one line; the first of the functions' docstrings without it.
        fields: others of `Recipe`.

    Raises:
        ValueError: the name is taken.
    """
    own = next((function for function in (advantage, objective) if function is not None), None)
    first_line = ((own.__doc__ or "").strip().splitlines() or [""])[0] if own is not None else ""
    recipe = Recipe(
        **{"formula": "", "paper": "your own", **fields},
        summary=summary or first_line,
        settings={"loss_type": "dapo", "beta": 0.0, **(settings or {})},
        advantage=advantage,
        is_advantage_trls=advantage is None,
        objective=objective,
    )
    return ALGORITHMS.register(name, recipe)


def canonical_name(name: str) -> str:
    """Return a name as the table spells it, whatever its case and punctuation (`DR-GRPO`, `REINFORCE++`).

    An unknown name stays as it is.

    `GAE`, the estimator by which other systems call it, is PPO.
    """
    wanted = _letters(name)
    found = next((known for known in ALGORITHMS if _letters(known) == wanted), name)
    return found if name in ALGORITHMS or wanted != "gae" else "ppo"


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "plusplus"))


def find_algorithm(name: str) -> Recipe:
    """The algorithm of a name, or of `path/to/file.py:name`: a `Recipe`, or a function from rewards to advantages.

    Raises:
        KeyError: an unknown name.
        ValueError: no such file, or nothing in it that can be an algorithm.
    """
    name = canonical_name(name)
    if name in ALGORITHMS or not is_file_spec(name):
        return ALGORITHMS[name]
    found = load_from_file("algorithm", name)
    if isinstance(found, Recipe):
        return ALGORITHMS.register(name, found)
    if inspect.isclass(found):
        raise ValueError(
            f"algorithm {name!r}: is a class, as for RLLaVA's @register_ppo; here an algorithm is a function from "
            "rewards (prompts, completions) to advantages, or a Recipe: see 'Your own' in docs/algorithms.md"
        )
    if not callable(found):
        raise ValueError(f"algorithm {name!r}: must be a Recipe or a function of rewards, got {type(found).__name__}")
    return register_algorithm(name, advantage=found)


def options_of(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `--algorithm_options` that a function takes."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def recipe_settings(name: str, accumulation: int = 1) -> dict[str, Any]:
    """The settings of a recipe for a number of gradient accumulation steps.

    Raises:
        KeyError: an unknown algorithm.
    """
    recipe = find_algorithm(name)
    several = {"steps_per_generation": recipe.mini_batches * accumulation} if recipe.mini_batches > 1 else {}
    return {**recipe.settings, **several}


def advantages(
    name: str,
    rewards: Sequence[float] | Tensor,
    num_generations: int,
    lengths: Sequence[int] | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The advantage of each completion of a rollout under an algorithm, (B,) from (B,) rewards.

    Args:
        name: of the algorithm.
        rewards: of all completions, those of a prompt side by side; NaN where no reward applied.
        num_generations: completions of each prompt.
        lengths: tokens of each completion, where the algorithm weighs by them.
        options: what else it needs: `greedy`, the reward of each prompt's greedy completion.

    Raises:
        KeyError: an unknown algorithm.
        ValueError: the rewards are not whole groups.
        TypeError: something is missing that the algorithm needs, or it has no advantage of rewards alone.
    """
    formula = find_algorithm(name).advantage
    if formula is None:
        raise TypeError(f"{name!r} has no advantage that comes from rewards alone")
    table = torch.as_tensor(rewards, dtype=torch.get_default_dtype())
    if table.numel() % num_generations:
        raise ValueError(f"{table.numel()} rewards are not whole groups of {num_generations}")
    given = {**options, **({} if lengths is None else {"lengths": lengths})}
    shaped = {key: _shaped(key, value, num_generations, table.device) for key, value in given.items()}
    _check_options(name, formula, shaped)
    return formula(table.view(-1, num_generations), **shaped).nan_to_num(nan=0.0).flatten()


def _shaped(name: str, value: Any, num_generations: int, device: Any) -> Any:
    """What there is for each completion or prompt as a tensor; options as they are."""
    if name == "lengths":
        return torch.as_tensor(value, device=device).view(-1, num_generations)
    return torch.as_tensor(value, device=device) if name == "greedy" else value


def _check_options(name: str, formula: Callable, given: Mapping[str, Any]) -> None:
    wanted = {p.name: p.default for p in inspect.signature(formula).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for key, default in wanted.items():
        if default is inspect.Parameter.empty and key not in given:
            raise TypeError(f"{name!r} needs {key}")
    for key in sorted(given.keys() - wanted.keys()):
        raise TypeError(f"{name!r} takes no {key}; it takes {', '.join(sorted(wanted)) or 'rewards alone'}")
