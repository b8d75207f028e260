"""Warns when a training learns nothing: in every group all rewards are equal, so every advantage is 0."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from vlm_grpo.algorithms import AlgorithmConfig, configured_algorithm

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

STEPS_WITHOUT_SIGNAL = 20  # after which the warning is logged
MEAN_AFFIXES = ("rewards/", "/mean")
TRUNCATED = 0.9  # fraction of truncated completions that is named as a cause


class NoSignal(TrainerCallback):
    """Warns once when no group's rewards have differed for many steps; `message` is for the page of the training.

    Args:
        is_main_process: whether this process logs the warning.
    """

    def __init__(self, is_main_process: bool) -> None:
        self.is_main_process = is_main_process
        self.message: str | None = None
        self._first = 0  # step of the last log line with a signal
        self._has_warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        self._first, self.message = state.global_step, None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "frac_reward_zero_std" not in logs:
            return
        if has_signal(logs, configured_algorithm(args)[1]):
            self._first, self.message = state.global_step, None
        elif state.global_step - self._first >= STEPS_WITHOUT_SIGNAL:
            limit = getattr(args, "max_completion_length", 0)
            self.message = message(logs, state.global_step - self._first, limit)
            if self.is_main_process and not self._has_warned:
                logger.warning("%s", self.message)
                self._has_warned = True


def has_signal(logs: Mapping[str, Any], algorithm: AlgorithmConfig) -> bool:
    """Return whether rewards differed: within a group, or anywhere for algorithms that compare beyond groups.

    Algorithms with demonstrations learn from these in any case.
    """
    if algorithm.family.needs_demonstrations:
        return True
    is_of_groups = algorithm.uses_trl_advantage
    spread = [value for name, value in logs.items() if name.startswith(MEAN_AFFIXES[0]) and name.endswith("/std")]
    return logs["frac_reward_zero_std"] < 1 or (not is_of_groups and any(value > 0 for value in spread))


def message(logs: Mapping[str, Any], steps: int, limit: int) -> str:
    """Return the warning: for how many steps, and the usual causes, those visible in the log line first."""
    return (
        f"No signal for {steps} steps: in every group of completions all rewards are equal, so nothing is learned. "
        f"{' '.join(_logged_causes(logs, limit)) or _general_causes(logs)}"
    )


def _logged_causes(logs: Mapping[str, Any], limit: int) -> list[str]:
    means = {
        name[len(MEAN_AFFIXES[0]) : -len(MEAN_AFFIXES[1])]: value for name, value in logs.items() if _is_mean(name)
    }
    causes = []
    share = logs.get("completions/clipped_ratio", 0.0)
    if share >= TRUNCATED:
        causes.append(f"{share:.0%} of the completions are truncated at --max_completion_length {limit}: raise it.")
    if means.get("format") == 0:
        causes.append("The format that 'format' requires is never met: look at completions, train on examples first.")
    zero = [name for name, value in means.items() if value == 0 and name != "format"]
    if zero:
        names = ", ".join(map(repr, zero))
        causes.append(
            f"No completion gets any reward from {names}: too hard, or unsuitable for these data (`vlm-grpo check`)."
        )
    return causes


def _general_causes(logs: Mapping[str, Any]) -> str:
    return (
        f"The mean reward is {logs.get('reward', float('nan')):g}: the data may be too easy or too hard for the model, "
        "completions may be all alike (--temperature), or a reward may be the same for every answer."
    )


def _is_mean(name: str) -> bool:
    return name.startswith(MEAN_AFFIXES[0]) and name.endswith(MEAN_AFFIXES[1])
