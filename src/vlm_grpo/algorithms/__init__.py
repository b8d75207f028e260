"""Algorithms by name: the published settings for TRL's trainers, and what TRL lacks.

r are the rewards of the completions of a prompt, l their lengths, A advantages, w = p / p_old.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_grpo.algorithms import group, reinforce
from vlm_grpo.algorithms.algorithm import Advantages, Algorithm, AlgorithmConfig, AlgorithmOptions, ScoredRollout
from vlm_grpo.algorithms.chord import CHORD
from vlm_grpo.algorithms.hpt import HPT
from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.algorithms.luffy import LUFFY, SRFT
from vlm_grpo.algorithms.ppo import PPO
from vlm_grpo.algorithms.reinforce import ReinforcePlusPlus
from vlm_grpo.algorithms.token_mask import ClipCov, KLCov
from vlm_grpo.algorithms.uft import UFT
from vlm_grpo.import_utils import is_file_spec, load_from_file
from vlm_grpo.registry import Registry

__all__ = [
    "ALGORITHMS",
    "TRL_SETTINGS",
    "Advantages",
    "Algorithm",
    "AlgorithmConfig",
    "AlgorithmOptions",
    "LossInputs",
    "ScoredRollout",
    "advantages",
    "algorithm_settings",
    "canonical_name",
    "configured_algorithm",
    "find_algorithm",
    "register_algorithm",
]

BY_GROUP = {"scale_rewards": "group"}
TOKEN_MEAN = {"loss_type": "dapo"}  # over all tokens of an optimizer step
CENTERED = {"scale_rewards": "none", "loss_type": "dr_grpo"}

TABLE: Mapping[str, AlgorithmConfig] = {
    "grpo": AlgorithmConfig(
        summary="reward minus group mean, divided by the group's std; mean over the tokens of each completion",
        formula="A = (r - mean r) / (std r + 1e-4); min(w A, clip(w, 0.8, 1.2) A) + 0.04 KL",
        paper="arXiv:2402.03300",
        settings={**BY_GROUP, "loss_type": "grpo", "epsilon": 0.2, "beta": 0.04, "use_bias_correction_kl": False},
    ),
    "dr_grpo": AlgorithmConfig(
        summary="reward minus group mean, not divided by the std; token sum over a constant length",
        formula="A = r - mean r; sum over tokens / max_completion_length",
        paper="arXiv:2503.20783",
        settings={"loss_type": "dr_grpo", "scale_rewards": "none", "epsilon": 0.2, "beta": 0.0},
        trl_advantage_fn=group.dr_grpo,
    ),
    "bnpo": AlgorithmConfig(
        summary="GRPO with the mean over all tokens of a micro-batch",
        formula="A as in grpo; sum over tokens / tokens of the micro-batch",
        paper="TRL",
        settings={**BY_GROUP, "loss_type": "bnpo", "epsilon": 0.2, "beta": 0.0},
    ),
    "dapo": AlgorithmConfig(
        summary="clip-higher, token mean, dynamic sampling, masking and soft punishment of overlong completions",
        formula="A as in grpo; min(w A, clip(w, 0.8, 1.28) A); r - soft punishment of the last fifth of the length",
        paper="arXiv:2503.14476",
        settings={
            **BY_GROUP,
            **TOKEN_MEAN,
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "beta": 0.0,
            "mask_truncated_completions": True,
            "dynamic_sampling": 10,
        },
        updates_per_rollout=16,
        rewards={"overlong": 1.0},
    ),
    "gspo": AlgorithmConfig(
        summary="one importance ratio per completion with a narrow clip range; four updates per rollout",
        formula="w = exp(mean over tokens of log p / p_old), clipped to 1 - 3e-4 .. 1 + 4e-4",
        paper="arXiv:2507.18071",
        settings={
            **BY_GROUP,
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
            "beta": 0.0,
        },
        updates_per_rollout=4,
    ),
    "gmpo": AlgorithmConfig(
        summary="geometric mean of the token ratios, each clipped on one side",
        formula="-A exp(mean of clip(log w)), clipped at +0.4 for A > 0, at -0.4 for A < 0",
        paper="arXiv:2507.20673",
        settings={**BY_GROUP, "loss_type": "grpo", "beta": 0.0},
        updates_per_rollout=4,
        loss_fn=group.gmpo_loss,
        unused_settings=("epsilon", "epsilon_high"),
    ),
    "clip_cov": AlgorithmConfig(
        summary="no gradient for a few random tokens with a high covariance of advantage and log-probability",
        formula="A = 0 for 2e-4 of the tokens, drawn where 1 <= cov(A, log p) <= 5; clipped ratio",
        paper="arXiv:2505.22617",
        family=ClipCov,
        settings={**BY_GROUP, **TOKEN_MEAN, "epsilon": 0.2, "beta": 0.0},
        updates_per_rollout=8,
    ),
    "kl_cov": AlgorithmConfig(
        summary="KL penalty on the tokens with the highest covariance of advantage and log-probability",
        formula="-A w + |log w| for the 2e-3 of the tokens with the highest cov(A, log p); no clipping",
        paper="arXiv:2505.22617",
        family=KLCov,
        settings={**BY_GROUP, **TOKEN_MEAN, "beta": 0.0},
        updates_per_rollout=8,
        unused_settings=("epsilon", "epsilon_high"),
        min_updates=2,
    ),
    "luspo": AlgorithmConfig(
        summary="GSPO with each completion weighted by its length",
        formula="l w A, with w of the completion as in gspo",
        paper="arXiv:2602.05261",
        settings={
            **BY_GROUP,
            "loss_type": "luspo",
            "importance_sampling_level": "sequence",
            "epsilon": 2e-3,
            "epsilon_high": 2.5e-3,
            "beta": 0.0,
        },
    ),
    "cispo": AlgorithmConfig(
        summary="stop-gradient importance weight with an upper cap; every token keeps its policy gradient",
        formula="-sg(min(w, 5)) A log p",
        paper="arXiv:2506.13585",
        settings={**BY_GROUP, "loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.0},
    ),
    "sapo": AlgorithmConfig(
        summary="a sigmoid of the ratio instead of clipping, steeper for negative advantages",
        formula="4 / t sigmoid(t (w - 1)) A, t = 1 for A > 0, else 1.05",
        paper="arXiv:2511.20347",
        settings={
            **BY_GROUP,
            "loss_type": "sapo",
            "sapo_temperature_pos": 1.0,
            "sapo_temperature_neg": 1.05,
            "beta": 0.0,
        },
    ),
    "vespo": AlgorithmConfig(
        summary="completions weighted by a gamma density of their ratio: smooth instead of clipped",
        formula="-phi(w) A log p, phi(w) = e^L w^k e^(-L w), w of the completion",
        paper="arXiv:2602.10693",
        settings={**BY_GROUP, "loss_type": "vespo", "beta": 0.0},
    ),
    "rloo": AlgorithmConfig(
        summary="reward minus the mean of the other completions; a completion is one action",
        formula="A_i = r_i - mean of r_j, j != i, with the KL in the reward",
        paper="arXiv:2402.14740",
        settings={"normalize_advantages": False},
        trainer="rloo",
        trl_advantage_fn=group.rloo,
    ),
    "rloo_grpo": AlgorithmConfig(
        summary="RLOO's advantage and ratio in the GRPO trainer, for tools and environments",
        formula="A_i = r_i - mean of r_j, j != i; min(w A, clip(w, 0.8, 1.2) A) with w of the whole completion",
        paper="arXiv:2402.14740",
        settings={"loss_type": "grpo", "beta": 0.0},
        advantage_fn=group.rloo,
        loss_fn=group.sequence_ratio_loss,
        unused_settings=("epsilon", "epsilon_high"),
    ),
    "opo": AlgorithmConfig(
        summary="length-weighted mean as the baseline of minimal variance; exactly on-policy",
        formula="A = r - sum(l r) / sum(l)",
        paper="arXiv:2505.23585",
        settings={**TOKEN_MEAN, "beta": 0.0},
        advantage_fn=group.opo,
        is_on_policy=True,
    ),
    "gpg": AlgorithmConfig(
        summary="plain policy gradient; groups with equal rewards do not make the step smaller",
        formula="A = (r - mean r) groups / groups that vary; -A log p",
        paper="arXiv:2504.02546",
        settings={**TOKEN_MEAN, "beta": 0.0},
        advantage_fn=group.gpg,
        uses_ratio=False,
    ),
    "grpo_passk": AlgorithmConfig(
        summary="only the best completion has an advantage, its distance to the second best: for pass@k",
        formula="A = r_max - r_second for the best, else 0",
        paper="arXiv:2503.19595",
        settings={**TOKEN_MEAN, "beta": 0.0},
        advantage_fn=group.grpo_passk,
    ),
    "reinforce_plus_plus": AlgorithmConfig(
        summary="rewards normalized over all tokens of all prompts; one completion per prompt is enough",
        formula="A = (r - mean) / std over all tokens of the rollout; clipped ratio",
        paper="arXiv:2501.03262",
        family=ReinforcePlusPlus,
        settings={**TOKEN_MEAN, "epsilon": 0.2, "beta": 0.0},
        advantage_fn=reinforce.reinforce_plus_plus,
        min_generations=1,
    ),
    "ppo": AlgorithmConfig(
        summary="token advantages from a value model; one completion per prompt is enough; four updates per rollout",
        formula="A_t = sum over s of (gamma lam)^s delta_(t+s), whitened; clipped ratio + 0.5 (V - R)^2 / 2, clipped",
        paper="arXiv:1707.06347",
        family=PPO,
        settings={**TOKEN_MEAN, "epsilon": 0.2, "beta": 0.0},
        updates_per_rollout=4,
        min_generations=1,
    ),
    "reinforce_plus_plus_baseline": AlgorithmConfig(
        summary="reward minus group mean, normalized over all tokens of all prompts",
        formula="A = (r - mean r) / std of these differences over all tokens of the rollout",
        paper="arXiv:2501.03262",
        settings={**TOKEN_MEAN, "epsilon": 0.2, "beta": 0.0},
        advantage_fn=reinforce.reinforce_plus_plus_baseline,
    ),
    "remax": AlgorithmConfig(
        summary="reward of the greedy completion of the prompt as baseline",
        formula="A = r - r(greedy)",
        paper="arXiv:2310.10505",
        settings={**TOKEN_MEAN, "beta": 0.0},
        advantage_fn=group.remax,
        min_generations=1,
    ),
    "luffy": AlgorithmConfig(
        summary="some completions of each prompt are demonstrations, whose unlikely tokens keep a gradient",
        formula="A = r - mean r over both; -A w, for demonstrations -A p / (p + 0.1); no clipping",
        paper="arXiv:2504.14945",
        family=LUFFY,
        settings={**CENTERED, "beta": 0.0},
        trl_advantage_fn=group.dr_grpo,
        unused_settings=("epsilon", "epsilon_high"),
    ),
    "srft": AlgorithmConfig(
        summary="SFT on demonstrations and RL in one step, both weighted by the entropy of the policy",
        formula="demonstration: -0.5 exp(-H) log p - A p / (p + 0.1); correct: -0.1 exp(H) log p; incorrect: log p",
        paper="arXiv:2506.19767",
        family=SRFT,
        settings={**CENTERED, "beta": 0.0},
        trl_advantage_fn=group.dr_grpo,
        unused_settings=("epsilon", "epsilon_high"),
    ),
    "hpt": AlgorithmConfig(
        summary="SFT on a demonstration for prompts without a correct completion, RL for the others",
        formula="no correct completion: -log p of the demonstration; else A = r - mean r, clipped ratio",
        paper="arXiv:2509.04419",
        family=HPT,
        settings={**CENTERED, "beta": 0.0},
        trl_advantage_fn=group.dr_grpo,
        unused_settings=("epsilon", "epsilon_high"),
    ),
    "chord": AlgorithmConfig(
        summary="GRPO, and SFT on separate batches of demonstrations with a weight that rises and falls",
        formula="(1 - mu) L_GRPO + mu L_SFT; mu linear to 0.5 at step 200, by a cosine to 0.02 at step 600",
        paper="arXiv:2508.11408",
        family=CHORD,
        settings={**BY_GROUP, **TOKEN_MEAN, "epsilon": 0.2, "beta": 0.0},
    ),
    "uft": AlgorithmConfig(
        summary="completions begin with a part of a demonstration that gets shorter during training",
        formula="GRPO after k of 5 parts as a hint, k binomial, p from .95 to .05 over 300 steps; + 0.001 NLL(hint)",
        paper="arXiv:2505.16984",
        family=UFT,
        settings={**BY_GROUP, **TOKEN_MEAN, "epsilon": 0.2, "beta": 0.001, "use_bias_correction_kl": False},
    ),
}

ALGORITHMS: Registry[AlgorithmConfig] = Registry("algorithm", TABLE)
TRL_SETTINGS = AlgorithmConfig(  # without --algorithm
    summary="what TRL's settings say", formula="", paper="", settings={}
)


def register_algorithm(
    name: str,
    *,
    advantage: Callable[..., Tensor] | None = None,
    objective: Callable[..., Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    summary: str = "",
    **fields: Any,
) -> AlgorithmConfig:
    """Add an algorithm of one's own to `ALGORITHMS`, for `--algorithm` and for configurations.

    Args:
        name: a new one.
        advantage: from (P, G) rewards to advantages, as those in group.py; None is TRL's.
        objective: from `LossInputs` to the loss of each token, as those in group.py; None is TRL's.
        settings: fields of the trainer's configuration; by default a mean over all tokens of a step and no KL.
        summary: one line; by default the first line of the docstring of the class or function.
        fields: further fields of `AlgorithmConfig`, such as `family`, a subclass of `Algorithm`.

    Raises:
        ValueError: the name is taken.
    """
    own = next((each for each in (fields.get("family"), advantage, objective) if each is not None), None)
    first_line = ((own.__doc__ or "").strip().splitlines() or [""])[0] if own is not None else ""
    config = AlgorithmConfig(
        **{"formula": "", "paper": "your own", **fields},
        summary=summary or first_line,
        settings={"loss_type": "dapo", "beta": 0.0, **(settings or {})},
        advantage_fn=advantage,
        loss_fn=objective,
    )
    return ALGORITHMS.register(name, config)


def canonical_name(name: str) -> str:
    """Return a name as in `ALGORITHMS`, whatever its case and punctuation (`DR-GRPO`, `REINFORCE++`).

    Unknown names are returned unchanged. `GAE`, as other systems call the estimator, is PPO.
    """
    letters = _letters(name)
    canonical = next((known for known in ALGORITHMS if _letters(known) == letters), name)
    return canonical if name in ALGORITHMS or letters != "gae" else "ppo"


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "plusplus"))


def find_algorithm(name: str) -> AlgorithmConfig:
    """Return the algorithm of a name, or of `path/to/file.py:name`.

    The name in the file is an `AlgorithmConfig`, a subclass of `Algorithm`, or a function from rewards to advantages.

    Raises:
        KeyError: an unknown name.
        ValueError: there is no such file, or nothing in it that can be an algorithm.
    """
    name = canonical_name(name)
    if name in ALGORITHMS or not is_file_spec(name):
        return ALGORITHMS[name]
    entry = load_from_file("algorithm", name)
    if isinstance(entry, AlgorithmConfig):
        return ALGORITHMS.register(name, entry)
    if inspect.isclass(entry) and issubclass(entry, Algorithm):
        return register_algorithm(name, family=entry)
    if inspect.isclass(entry):
        raise ValueError(
            f"algorithm {name!r}: is a class, as for RLLaVA's @register_ppo, but not a subclass of "
            "vlm_grpo.algorithms.Algorithm; write a subclass, or a function from rewards (prompts, completions) to "
            "advantages: see 'Your own' in docs/algorithms.md"
        )
    if not callable(entry):
        expected = "an AlgorithmConfig, a subclass of Algorithm or a function of rewards"
        raise ValueError(f"algorithm {name!r}: must be {expected}, got {type(entry).__name__}")
    return register_algorithm(name, advantage=entry)


def configured_algorithm(args: Any) -> tuple[str | None, AlgorithmConfig]:
    """Return name and entry of the algorithm of training arguments, TRL's or this package's."""
    name = getattr(args, "algorithm", None)
    return name, find_algorithm(name) if name else TRL_SETTINGS


def algorithm_settings(name: str, accumulation: int = 1) -> dict[str, Any]:
    """Return the settings of an algorithm for a number of gradient accumulation steps.

    Raises:
        KeyError: an unknown algorithm.
    """
    config = find_algorithm(name)
    updates = config.updates_per_rollout
    return {**config.settings, **({"steps_per_generation": updates * accumulation} if updates > 1 else {})}


def advantages(
    name: str,
    rewards: Sequence[float] | Tensor,
    num_generations: int,
    lengths: Sequence[int] | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return the advantage of each completion of a rollout under an algorithm, (B,) from (B,) rewards.

    Args:
        name: of the algorithm.
        rewards: of all completions, those of a prompt next to each other; NaN if no reward applied.
        num_generations: completions of each prompt.
        lengths: tokens of each completion, if the algorithm needs them.
        options: of the algorithm, and `greedy`, the reward of the greedy completion of each prompt, if it needs that.

    Raises:
        KeyError: an unknown algorithm.
        ValueError: the rewards are not whole groups.
        TypeError: an argument is missing or unknown, or the algorithm has no advantage of rewards alone.
    """
    formula = find_algorithm(name).formula_fn
    if formula is None:
        raise TypeError(f"{name!r} has no advantage that comes from rewards alone")
    table = torch.as_tensor(rewards, dtype=torch.get_default_dtype())
    options |= {} if lengths is None else {"lengths": lengths}
    return group.group_advantages(formula, table, num_generations, name=name, **options)
