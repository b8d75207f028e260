"""Keeps the weights of an engine in step with the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from vlm_grpo.rollouts.engines.engine import NamedTensor, RolloutEngine


@runtime_checkable
class SleepingEngine(Protocol):
    """An engine that can free the accelerator's memory while the policy is trained."""

    sleeps: bool

    def sleep(self) -> None:
        """Free the memory until the next `update_weights`; the weights are lost."""
        ...


class WeightSync:
    """Sends the weights of the policy to an engine with a copy of its own, once for each step.

    Args:
        engine: of this process.
        weights: returns the policy's, to iterate over once.
    """

    def __init__(self, engine: RolloutEngine, weights: Callable[[], Iterable[NamedTensor]]) -> None:
        self.engine, self.weights = engine, weights
        self.step: int | None = None  # whose weights the engine has

    def update(self, step: int) -> None:
        """Give the engine the weights of a step, unless it has them; every process takes part."""
        if self.engine.has_own_weights and step != self.step:
            self.engine.update_weights(self.weights())
            self.step = step

    def sleep(self) -> None:
        """Let an engine that sleeps free its memory until the next update."""
        if isinstance(self.engine, SleepingEngine) and self.engine.sleeps:
            self.engine.sleep()
            self.forget()

    def forget(self) -> None:
        """Send the weights again before the next rollout: they were loaded from a file, or the engine has lost them."""
        self.step = None
