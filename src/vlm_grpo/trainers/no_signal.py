"""Says when a training learns nothing: in every group all rewards are equal, so that every advantage is 0."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from vlm_grpo.algorithms import AlgorithmConfig, configured_algorithm

logger = logging.getLogger(__name__)

STEPS = 20  # without a signal, after which it is said
ENDS = ("rewards/", "/mean")
TRUNCATED = 0.9  # share of completions that is called a cause


class NoSignal(TrainerCallback):
    """Warns once when no group's rewards have differed for many steps; `message` is for the page of the training.

    Args:
        is_main: whether this process says it.
    """

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main
        self.message: str | None = None
        self._first = 0  # step of the last log line with a signal
        self._is_said = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._first, self.message = state.global_step, None

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not logs or "frac_reward_zero_std" not in logs:
            return
        if has_signal(logs, configured_algorithm(args)[1]):
            self._first, self.message = state.global_step, None
        elif state.global_step - self._first >= STEPS:
            self.message = message(logs, state.global_step - self._first, args.max_completion_length)
            if self.is_main and not self._is_said:
                logger.warning("%s", self.message)
                self._is_said = True


def has_signal(logs: Mapping[str, Any], algorithm: AlgorithmConfig) -> bool:
    """Return whether rewards differed: within a group, or anywhere for algorithms that compare beyond groups.

    Algorithms with demonstrations learn from these in any case.
    """
    if algorithm.family.needs_demonstrations:
        return True
    spread = [value for name, value in logs.items() if name.startswith(ENDS[0]) and name.endswith("/std")]
    is_of_groups = algorithm.uses_trl_advantage
    return logs["frac_reward_zero_std"] < 1 or (not is_of_groups and any(value > 0 for value in spread))


def message(logs: Mapping[str, Any], steps: int, limit: int) -> str:
    """Return what is said: since when, and the usual causes, those that the log line shows first."""
    return (
        f"No signal for {steps} steps: in every group of completions all rewards are equal, so nothing is learned. "
        f"{' '.join(_seen(logs, limit)) or _unseen(logs)}"
    )


def _seen(logs: Mapping[str, Any], limit: int) -> list[str]:
    means = {name[len(ENDS[0]) : -len(ENDS[1])]: value for name, value in logs.items() if _is_mean(name)}
    causes = []
    share = logs.get("completions/clipped_ratio", 0.0)
    if share >= TRUNCATED:
        causes.append(f"{share:.0%} of the completions are cut off at --max_completion_length {limit}: raise it.")
    if means.get("format") == 0:
        causes.append("The form that 'format' asks for is never met: look at completions, train on examples first.")
    zero = [name for name, value in means.items() if value == 0 and name != "format"]
    if zero:
        names = ", ".join(map(repr, zero))
        causes.append(f"No completion earns anything of {names}: too hard, or not for these data (`vlm-grpo check`).")
    return causes


def _unseen(logs: Mapping[str, Any]) -> str:
    return (
        f"The mean reward is {logs.get('reward', float('nan')):g}: the data may be too easy or too hard for the model, "
        "completions may be all alike (--temperature), or a reward may give the same to every answer."
    )


def _is_mean(name: str) -> bool:
    return name.startswith(ENDS[0]) and name.endswith(ENDS[1])
