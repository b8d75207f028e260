"""A training in which every group's rewards are equal says so once, with the causes that its log shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.evaluation.test_dashboard import data_of
from tests.support.training import image_rows, settings
from vlm_grpo.algorithms import ALGORITHMS, TRL_SETTINGS
from vlm_grpo.evaluation.report.dashboard import LiveReport
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.no_signal import NoSignal, has_signal, message

SILENT = {"frac_reward_zero_std": 1.0, "reward": 0.0, "completions/clipped_ratio": 0.5}


def nothing(completions: list, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def test_a_training_without_signal_says_so_once_and_on_its_page(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=22, max_completion_length=2, learning_rate=0.0))
    trainer = VLMGRPOTrainer(str(tiny_model), nothing, args, train_dataset=image_rows())
    trainer.add_callback(LiveReport(trainer))
    trainer.train()
    said = [record.getMessage() for record in caplog.records if "No signal" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("No signal for 20 steps: in every group of completions all rewards")
    assert "100% of the completions are truncated at --max_completion_length 2: raise it." in said[0]
    assert "No completion gets any reward from 'nothing'" in said[0]
    assert data_of(tmp_path / "report")["facts"]["warning"].startswith("No signal for 22 steps")


def test_it_is_said_after_many_steps_and_taken_back(caplog: pytest.LogCaptureFixture):
    watch, args = NoSignal(is_main_process=True), SimpleNamespace(algorithm=None, max_completion_length=9)
    watch.on_train_begin(args, SimpleNamespace(global_step=100), None)

    def log(step: int, **logs: float) -> str | None:
        watch.on_log(args, SimpleNamespace(global_step=step), None, logs)
        return watch.message

    assert log(119, **SILENT) is None
    assert log(120, loss=1.0) is None, "an evaluation, or another trainer"
    assert log(120, **SILENT).startswith("No signal for 20 steps")
    assert log(130, **{**SILENT, "frac_reward_zero_std": 0.9}) is None
    assert log(149, **SILENT) is None and log(150, **SILENT) is not None
    assert caplog.text.count("No signal") == 1


@pytest.mark.parametrize(
    ("logs", "causes"),
    [
        ({"rewards/format/mean": 0.0, "rewards/iou/mean": 0.2}, ["The format that 'format' requires is never met"]),
        ({"rewards/a/mean": 0.0, "rewards/b/mean": 0.0}, ["No completion gets any reward from 'a', 'b'"]),
        ({"rewards/a/mean": 1.0, "reward": 1.0}, ["The mean reward is 1: the data may be too easy or too hard"]),
    ],
)
def test_the_usual_causes(logs: dict[str, float], causes: list[str]):
    text = message({**SILENT, **logs}, 20, 64)
    assert all(cause in text for cause in causes) and "truncated" not in text


def test_algorithms_that_compare_beyond_groups_learn_from_equal_groups():
    differs = {**SILENT, "rewards/a/std": 0.3}
    assert not has_signal(differs, TRL_SETTINGS) and not has_signal(differs, ALGORITHMS["dr_grpo"])
    assert has_signal(differs, ALGORITHMS["reinforce_plus_plus"]) and has_signal(differs, ALGORITHMS["ppo"])
    assert not has_signal({**SILENT, "rewards/a/std": 0.0}, ALGORITHMS["ppo"])
    assert has_signal(SILENT, ALGORITHMS["luffy"]), "from the expert"
