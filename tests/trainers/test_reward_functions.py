"""Functions that are given to a trainer itself, and environments' own rewards, are checked as named rewards are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from vlm_grpo.rollouts.env_pool import environment_reward
from vlm_grpo.trainers.reward_functions import named_rewards


class Maze:
    """An environment whose reward is what it was made with."""

    def __init__(self, reward: object) -> None:
        self.reward = reward

    def get_reward(self) -> object:
        return self.reward


def test_a_function_of_the_python_api_is_checked():
    def half(completions: list, **columns: object) -> list[float]:
        return [0.5, float("nan")]

    async def late(completions: list, **columns: object) -> list[float]:
        return [0.5, float("nan")]

    (first, second, third), weights = named_rewards([half, late, "format:1"], SimpleNamespace())
    assert [function.__name__ for function in (first, second, third)] == ["half", "late", "format"]
    assert asyncio.iscoroutinefunction(second) and not asyncio.iscoroutinefunction(first) and weights is None
    with pytest.raises(ValueError, match=r"reward 'half' on record 8: must return a finite number"):
        first(prompts=["q", "q"], completions=["a", "b"], id=[7, 8])
    with pytest.raises(ValueError, match=r"reward 'late' on record 8: must return a finite number"):
        asyncio.run(second(prompts=["q", "q"], completions=["a", "b"], id=[7, 8]))


@pytest.mark.parametrize("reward", [float("nan"), float("-inf"), 1e300, "much"])
def test_the_reward_of_an_environment_is_checked(reward: object):
    functions, _ = named_rewards(None, SimpleNamespace(), [environment_reward(Maze, 5.0)])
    columns = {"prompts": ["q", "q"], "completions": ["a", "b"], "id": [7, 8], "where": ["x.jsonl:1", "x.jsonl:2"]}
    assert functions[0](environments=[Maze(1), object()], **columns) == [1.0, None]
    with pytest.raises(
        (TypeError, ValueError), match=r"environment 'Maze', get_reward\(\) on row x\.jsonl:2: must return"
    ):
        functions[0](environments=[Maze(1), Maze(reward)], **columns)


class AsyncMaze(Maze):
    """The same, asked of a server."""

    async def get_reward(self) -> object:
        await asyncio.sleep(0)
        if isinstance(self.reward, Exception):
            raise self.reward
        return self.reward


def test_a_coroutine_of_an_environment_is_awaited_and_checked():
    (function,), _ = named_rewards(None, SimpleNamespace(), [environment_reward(AsyncMaze, 5.0)])
    assert asyncio.iscoroutinefunction(function)
    columns = {"prompts": ["q", "q"], "completions": ["a", "b"], "where": ["x.jsonl:1", "x.jsonl:2"]}
    assert asyncio.run(function(environments=[AsyncMaze(1), object()], **columns)) == [1.0, None]
    for reward, said in ((float("nan"), "must return a finite number"), (KeyError("k"), "KeyError: 'k'")):
        with pytest.raises((RuntimeError, ValueError), match=rf"'AsyncMaze', get_reward\(\) on row x.jsonl:2: {said}"):
            asyncio.run(function(environments=[AsyncMaze(1), AsyncMaze(reward)], **columns))


def test_a_class_is_no_reward():
    class Reward:
        def __call__(self, completions: list, **columns: object) -> list[float]:
            return [1.0] * len(completions)

    with pytest.raises(ValueError, match=r"reward 'Reward': must be .* got the class itself; give Reward\(\)"):
        named_rewards([Reward], SimpleNamespace())
    (function,), _ = named_rewards([Reward()], SimpleNamespace())
    assert function(completions=["a"]) == [1.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "must return a list of 2 numbers or None, got None"),
        (["1", "2"], "on record 7: must return a number or None, got '1'"),
        ([1.0], "must return a list of 2 numbers or None, got 1 values"),
        ("ab", "must return a list of 2 numbers or None, got 'ab'"),
    ],
)
def test_what_a_batch_reward_returns_is_said_by_name(values: object, said: str):
    def odd(completions: list, **columns: object) -> object:
        return values

    (function,), _ = named_rewards([odd], SimpleNamespace())
    with pytest.raises(TypeError, match=f"reward 'odd'.*{said}"):
        function(completions=["a", "b"], id=[7, 8])
