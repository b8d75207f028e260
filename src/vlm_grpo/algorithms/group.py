"""The group family: advantages from the rewards of a rollout, and the losses that TRL does not have.

The class of the family is `Algorithm` itself. Advantage functions take the (P, G) rewards of P prompts with G
completions on all processes and return (P, G) advantages. NaN marks a completion to which no reward function applied;
it is left out of statistics, and its NaN advantage becomes 0. `lengths` (P, G) are the completions' tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.algorithms.losses import LossInputs

EPSILON = 1e-4  # TRL adds it to a standard deviation
NO_SPREAD = 1e-6  # standard deviations below are rounding errors


def mean_over_group(rewards: Tensor) -> Tensor:
    """Return the mean reward of each group, (P, 1)."""
    return rewards.nanmean(dim=1, keepdim=True)


def nanstd(values: Tensor) -> Tensor:
    """Return the standard deviation (ddof 1) of each row without NaN, (P, 1); 0 for fewer than two values."""
    centred = values - values.nanmean(dim=1, keepdim=True)
    count = (~values.isnan()).sum(dim=1, keepdim=True)
    return (centred.square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def grpo(rewards: Tensor) -> Tensor:
    """Return reward minus the mean of the group, divided by its standard deviation (arXiv:2402.03300)."""
    return (rewards - mean_over_group(rewards)) / (nanstd(rewards) + EPSILON)


def dr_grpo(rewards: Tensor) -> Tensor:
    """Return reward minus the mean of the group, not divided by its standard deviation (arXiv:2503.20783).

    Dividing up-weights groups whose completions are almost all correct or almost all incorrect.
    """
    return rewards - mean_over_group(rewards)


def rloo(rewards: Tensor) -> Tensor:
    """Return reward minus the mean of the other completions: G / (G - 1) of `dr_grpo` (arXiv:2402.14740)."""
    count = (~rewards.isnan()).sum(dim=1, keepdim=True)
    return dr_grpo(rewards) * count / (count - 1).clamp(min=1)


def opo(rewards: Tensor, *, lengths: Tensor) -> Tensor:
    """Return reward minus the length-weighted mean, the baseline of minimal variance (arXiv:2505.23585).

    That is the optimal baseline for exactly on-policy updates only.
    """
    weights = torch.where(rewards.isnan(), 0, lengths).to(rewards)
    total = weights.sum(dim=1, keepdim=True)
    baseline = (weights * rewards).nansum(dim=1, keepdim=True) / total.clamp(min=1)
    return rewards - baseline


def remax(rewards: Tensor, *, greedy: Tensor) -> Tensor:
    """Return reward minus the reward `greedy` (P,) of the greedy completion of the prompt (arXiv:2310.10505)."""
    return rewards - greedy[:, None]


def gpg(rewards: Tensor) -> Tensor:
    """Return `dr_grpo` times the number of groups over the number of groups whose rewards vary (arXiv:2504.02546).

    Groups without varying rewards have no gradient; they must not make the step smaller.
    """
    varies = nanstd(rewards) > NO_SPREAD
    return dr_grpo(rewards) * len(rewards) / varies.sum().clamp(min=1)


def grpo_passk(rewards: Tensor) -> Tensor:
    """Return the best completion's distance to the second best, 0 for the others and for ties (arXiv:2503.19595)."""
    scores = rewards.nan_to_num(nan=-torch.inf)
    if rewards.size(1) < 2:
        return torch.zeros_like(rewards)
    best = scores.topk(2, dim=1)
    gap = (best.values[:, :1] - best.values[:, 1:]).nan_to_num(nan=0.0, posinf=0.0)
    return torch.zeros_like(rewards).scatter(1, best.indices[:, :1], gap)


def group_advantages(
    formula: Callable[..., Tensor], rewards: Tensor, num_generations: int, *, name: str = "", **options: Any
) -> Tensor:
    """Return the (B,) advantages of (B,) rewards; NaN becomes 0.

    Args:
        formula: from (P, G) rewards to (P, G) advantages.
        rewards: of all completions, those of a prompt next to each other.
        num_generations: completions of each prompt.
        name: of the algorithm, for errors.
        options: what the formula takes, with one value per completion in `lengths` and per prompt in `greedy`.

    Raises:
        ValueError: the rewards are not whole groups.
        TypeError: an argument of the formula is missing or unknown.
    """
    if rewards.numel() % num_generations:
        raise ValueError(f"{rewards.numel()} rewards are not whole groups of {num_generations}")
    for key in {"lengths", "greedy"} & options.keys():
        options[key] = torch.as_tensor(options[key], device=rewards.device)
    if "lengths" in options:
        options["lengths"] = options["lengths"].view(-1, num_generations)
    _check_arguments(name, formula, options)
    return formula(rewards.view(-1, num_generations), **options).nan_to_num(nan=0.0).flatten()


def _check_arguments(name: str, formula: Callable[..., Tensor], arguments: Mapping[str, Any]) -> None:
    known = {p.name: p.default for p in inspect.signature(formula).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in arguments:
            raise TypeError(f"{name!r} needs {key}")
    for key in sorted(arguments.keys() - known.keys()):
        raise TypeError(f"{name!r} takes no {key}; it takes {', '.join(sorted(known)) or 'rewards alone'}")


def gmpo_loss(inputs: LossInputs, *, gmpo_clip: float = 0.4) -> Tensor:
    """Return -A w, with w the geometric mean of the token ratios of a completion (arXiv:2507.20673).

    Each log-ratio is clipped only on the side that would make the step larger: at +`gmpo_clip` for A > 0, at
    -`gmpo_clip` for A < 0.
    """
    sign = torch.where(inputs.advantages >= 0, 1.0, -1.0)
    log_ratios = sign * torch.clamp(sign * (inputs.logps - inputs.old_logps), max=gmpo_clip)
    count = inputs.mask.sum(dim=1, keepdim=True).clamp(min=1)
    weight = ((log_ratios * inputs.mask).sum(dim=1, keepdim=True) / count).exp()  # (B, 1)
    return (-inputs.advantages * weight).expand_as(inputs.logps)


def sequence_ratio_loss(inputs: LossInputs, *, clip: float = 0.2) -> Tensor:
    """Return the clipped surrogate with one ratio per completion, which is RLOO's single action (arXiv:2402.14740)."""
    ratio = ((inputs.logps - inputs.old_logps) * inputs.mask).sum(dim=1, keepdim=True).exp()  # (B, 1)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.min(ratio * inputs.advantages, clipped * inputs.advantages).expand_as(inputs.logps)
