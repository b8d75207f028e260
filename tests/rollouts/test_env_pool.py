"""The environments of a run: reused, chosen by rows, rewarded, and named with their row where they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support.environments import Gallery
from tests.support.tool_rollouts import TRAINERS, column, gallery_trainer, metric, question_rows, rollout
from tests.support.training import user


class Quiet:
    """An environment without observations and tools."""

    def reset(self, **row: Any) -> None:
        """Observe nothing."""

    def get_reward(self) -> float:
        """Return the same reward for every episode."""
        return 0.5


class AsyncGallery(Gallery):
    """A gallery whose reward is a coroutine, as one that asks a server would be."""

    async def get_reward(self) -> float:
        """Return the number of pictures that were shown."""
        return float(self.shown)


def test_environments_are_reused_and_apart(tiny_model: Path, tmp_path: Path):
    made = []

    def make() -> Gallery:
        made.append(Gallery())
        return made[-1]

    trainer = gallery_trainer("grpo", tiny_model, tmp_path, environment_factory=make)
    rollout(trainer)
    rollout(trainer)
    assert len(made) == 4
    assert column(trainer, "Gallery")[-4:] == pytest.approx([2.010, 0.006, 0.014, 1.014])


def test_rows_choose_their_environment(tiny_model: Path, tmp_path: Path):
    data = Dataset.from_list([{"prompt": user("a"), "environment": name} for name in ("gallery", "quiet")])
    factory = {"gallery": Gallery, "quiet": Quiet}
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, (("hello",),), data, environment_factory=factory)
    trainer.model.train()
    trainer._generate_and_score_completions([dict(data[n // 2]) for n in range(4)])
    prompts, rewards = column(trainer, "prompt"), column(trainer, "Quiet")
    assert "tool_call" in str(prompts[0])
    assert "tool_call" not in str(prompts[2])
    assert rewards[2:] == [0.5, 0.5]
    assert all(value != value for value in rewards[:2])  # NaN: played in another environment


def test_a_row_that_names_no_environment_is_an_error(tiny_model: Path, tmp_path: Path):
    factory = {"gallery": Gallery, "quiet": Quiet}
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, environment_factory=factory)
    with pytest.raises(ValueError, match="'environment' must be one of gallery, quiet, got 'other'"):
        trainer.env_pool.start([{"prompt": user("a"), "environment": "other"}])


@pytest.mark.parametrize("kind", list(TRAINERS))
def test_the_reward_of_an_environment_may_be_a_coroutine(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer(kind, tiny_model, tmp_path, environment_factory=AsyncGallery)
    rollout(trainer)
    assert metric(trainer, "rewards/AsyncGallery/mean") == [0.75]  # 2, 0, 0 and 1 pictures


@pytest.mark.parametrize(
    ("method", "failure", "message"),
    [
        *((name, "raise ValueError('gone')", "ValueError: gone") for name in ("reset", "see", "finish", "metrics")),
        ("get_reward", "raise SystemExit(0)", "SystemExit: 0"),
        *(
            ("metrics", f"return {value}", "must return a mapping from name to a")
            for value in ("[1]", "{1: 'a'}", "{'a': float('nan')}")
        ),
        ("reset", "import time; time.sleep(60)", "has not returned for 2 s"),
    ],
)
def test_a_failing_environment_is_named_with_its_row(
    method: str, failure: str, message: str, tiny_model: Path, tmp_path: Path
):
    names: dict[str, Any] = {}
    exec(f"def {method}(self, *words, **options):\n    {failure}", names)
    kind = type("Torn", (Gallery,), {method: names[method]})
    data = question_rows(1).map(lambda row: {"where": "a.jsonl:7"})
    options = {"environment_factory": kind, "data": data, "reward_time_limit": 2.0}
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, **options)
    with pytest.raises(RuntimeError, match=rf"environment 'Torn', {method}\(\) on row a.jsonl:7.*{message}"):
        rollout(trainer)
