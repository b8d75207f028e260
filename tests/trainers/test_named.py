"""Functions that are given to a trainer itself, and environments' own rewards, are checked as named rewards are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from vlm_grpo.trainers.named import named_rewards
from vlm_grpo.trainers.stage import EnvironmentReward


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
    functions, _ = named_rewards(None, SimpleNamespace(), [EnvironmentReward("Maze", Maze)])
    columns = {"prompts": ["q", "q"], "completions": ["a", "b"], "id": [7, 8], "where": ["x.jsonl:1", "x.jsonl:2"]}
    assert functions[0](environments=[Maze(1), object()], **columns) == [1.0, None]
    with pytest.raises((TypeError, ValueError), match=r"reward 'Maze' on record 8 x\.jsonl:2: must return a"):
        functions[0](environments=[Maze(1), Maze(reward)], **columns)
