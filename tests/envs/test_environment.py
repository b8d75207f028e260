"""The base class of environments: what a subclass has to define, and which methods become tools."""

from __future__ import annotations

from typing import Any

import pytest

import vlm_grpo
from vlm_grpo.envs import Environment
from vlm_grpo.envs.agent_search import AgentSearch
from vlm_grpo.envs.environment import RESERVED, tools_of, validate_environment
from vlm_grpo.envs.tool_executor import ToolJob, execute_tool_calls
from vlm_grpo.tool_call_formats import ToolCall


class Guess(Environment):
    """A subclass with one tool."""

    def reset(self, target: int = 7, **row: Any) -> str:
        self.target, self.done = target, False
        return "Guess a number."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: From 1 to 10.
        """
        if not 1 <= number <= 10:
            raise vlm_grpo.ToolError(f"from 1 to 10, got {number}")
        self.done = number == self.target
        return "correct" if self.done else "wrong"


class WithoutReset(Environment):
    """A subclass that forgot what it must define."""


class DuckTyped:
    """No subclass, but `reset` and a typed tool."""

    def reset(self, **row: Any) -> None:
        return None

    def look(self, place: int) -> str:
        """Look somewhere.

        Args:
            place: Where.
        """
        return str(place)


def test_only_methods_that_are_no_hooks_are_tools():
    assert list(tools_of(Guess())) == ["guess"]
    assert list(tools_of(DuckTyped())) == ["look"]


def test_every_optional_hook_has_a_default():
    environment = Guess()
    environment.reset(target=3)
    environment.see(images=[], image_sizes=[])
    environment.failed("guess", "Error: from 1 to 10")
    environment.finish("3")
    assert environment.metrics() == {}
    assert environment.done is False
    assert {name for name in RESERVED if hasattr(Environment, name)} == set(RESERVED) - {"get_reward"}


def test_a_class_without_a_reward_adds_none():
    """The agent loop asks whether there is `get_reward`; the base class must not have one."""
    assert not hasattr(Guess, "get_reward")


@pytest.mark.parametrize("environment", [Guess(), DuckTyped()], ids=["subclass", "duck typed"])
def test_both_kinds_are_valid(environment: Any):
    validate_environment("mine", environment)


def test_reset_must_be_defined():
    with pytest.raises(ValueError, match="environment 'mine': WithoutReset must have a method 'reset'"):
        validate_environment("mine", WithoutReset())
    with pytest.raises(NotImplementedError, match="WithoutReset must define reset"):
        WithoutReset().reset()


def test_the_model_is_told_of_a_tool_error():
    environment = Guess()
    environment.reset()
    ((result,), is_hanging) = execute_tool_calls(
        [ToolJob(tools_of(environment), [ToolCall("guess", {"number": 11})], "")], 5.0
    )[0]
    assert (result.content, result.is_failure, is_hanging) == ("Error: from 1 to 10, got 11", True, False)


def test_no_attribute_of_a_built_in_environment_hides_a_hook(monkeypatch: pytest.MonkeyPatch):
    """A search that failed once ended the run: the count of failures stood where the hook `failed` is called."""
    monkeypatch.setenv("SEARCH_PROVIDER", "json")
    monkeypatch.setenv("SEARCH_BASE_URL", "http://127.0.0.1:9")
    environment = AgentSearch(timeout=0.1, retries=0)
    environment.reset(answer="x")
    assert all(callable(getattr(environment, name)) for name in RESERVED)
    environment.failed("search", "Error: no answer in time")


def test_what_users_need_is_exported():
    assert vlm_grpo.Environment is Environment
    assert vlm_grpo.make_reward("exact_match")(completions=["<answer>red</answer>"], answer=["red"]) == [1.0]
    assert callable(vlm_grpo.RewardFn.__call__)
    assert {"Environment", "RewardFn", "ToolError", "make_reward"} <= set(vlm_grpo.__all__)
