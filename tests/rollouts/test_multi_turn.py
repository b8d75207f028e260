"""The multi-turn loop: when episodes end, what is shown of tools' results and errors, and how calls run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.environments import Gallery, call, scripted_turns
from tests.support.tool_rollouts import READ, column, gallery_trainer, metric, rollout


@pytest.mark.parametrize(
    ("options", "scripts", "turns", "calls"),
    [
        ({"max_turns": 2}, ((READ,),), 2, 2),  # would go on for ever
        ({}, ((call("look", color="red"),),), 1, 1),  # done after one picture
        ({}, ((READ, READ, "end"),), 3, 2),
        ({}, (("no call",),), 1, 0),
    ],
)
def test_episodes_end(options: dict, scripts: Any, turns: int, calls: int, tiny_model: Path, tmp_path: Path):
    environment = {"environment_factory": lambda: Gallery(limit=1)}
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, scripts, **environment, **options)
    rollout(trainer)
    assert metric(trainer, "episodes/turns") == [turns]
    assert metric(trainer, "episodes/calls") == [calls]


def test_a_truncated_turn_ends_the_episode(tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, scripts=None)
    scripted_turns(trainer, ((READ, "end"),), is_truncated=lambda row, turn: turn == 0)
    rollout(trainer)
    assert metric(trainer, "episodes/turns") == [1]
    assert metric(trainer, "episodes/calls") == [0]


def test_results_beyond_the_length_limit_are_not_shown(tiny_model: Path, tmp_path: Path):
    """The second picture has no room: the episode ends with the call for it."""
    whole = int(rollout(gallery_trainer("grpo", tiny_model, tmp_path))["completion_mask"][0].sum())
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, max_completion_length=whole - 12)
    output = rollout(trainer)
    real = output["completion_mask"][0] == 1
    assert output["completion_ids"].size(1) <= whole - 12
    text = trainer.processing_class.tokenizer.decode(output["completion_ids"][0][real])
    assert text.endswith("</tool_call><|im_end|>")
    assert len(output["samples"][0].refs) == 2
    assert metric(trainer, "episodes/shown") == [3 / 4]  # rows 0 and 3; the second one was made, not shown


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (call("look", color="pink"), "Error: no color 'pink'"),
        (call("look"), "Error: look: missing a required argument: 'color'"),
        (call("look", colour="red"), "Error: look: missing a required argument: 'color'"),
        (call("paint"), "Error: there is no tool 'paint'"),
        ("<tool_call>{</tool_call>", "Error: the call cannot be read"),
        (call("crash"), "Error: RuntimeError: broken"),
        (call("wait", seconds=60), "Error: wait did not end within 0.2 s"),
        (call("reset"), "Error: there is no tool 'reset'"),
        (call("get_reward"), "Error: there is no tool 'get_reward'"),
    ],
)
def test_errors_are_shown_to_the_model(turn: str, error: str, tiny_model: Path, tmp_path: Path):
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, scripts=((turn, "end"),), tool_time_limit=0.2)
    rollout(trainer)
    completion = column(trainer, "completion")[0]
    assert metric(trainer, "episodes/failed_calls") == [1]
    if "did not end" in error:  # the environment is still busy: the episode is over
        assert len(completion) == 1
        assert len(trainer.env_pool.idle[None]) == 0
    else:
        assert completion[1]["content"].startswith(error)
        assert completion[-1]["content"] == "end"
        assert len(trainer.env_pool.idle[None]) == 4


def test_calls_of_a_turn_run_concurrently(tiny_model: Path, tmp_path: Path):
    """Four calls wait for each other: one after the other they would never meet."""
    barrier = threading.Barrier(4)

    def meet() -> str:
        """Wait for the others."""
        barrier.wait(timeout=30)
        return "met"

    scripts = ((call("meet"), "end"),)
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, scripts, tools=[meet], reward_funcs=["format"])
    rollout(trainer)
    assert [completion[1]["content"] for completion in column(trainer, "completion")] == ["met"] * 4


def test_tags_call_tools(tiny_model: Path, tmp_path: Path):
    environment = type("Tagged", (Gallery,), {"TAGS": {"look": "look"}})
    scripts = (("<look>green</look>", "end"),)
    trainer = gallery_trainer(
        "grpo", tiny_model, tmp_path, scripts, tool_format="tags", environment_factory=environment
    )
    output = rollout(trainer)
    assert "<look>color</look>" in str(column(trainer, "prompt")[0])
    assert "<result>" in trainer.processing_class.tokenizer.decode(output["completion_ids"][0])
    assert metric(trainer, "episodes/shown") == [1]


def test_named_rewards_see_the_last_turn(tiny_model: Path, tmp_path: Path):
    scripts = ((READ, "<answer>0</answer>"), (READ, "<answer>7</answer>"))
    trainer = gallery_trainer("grpo", tiny_model, tmp_path, scripts, reward_funcs=["accuracy"])
    rollout(trainer)
    assert column(trainer, "accuracy") == [1.0, 0.0, 1.0, 0.0]
