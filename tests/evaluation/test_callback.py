from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl.models import unwrap_model_for_generation

from tests.support.training import length_reward, settings
from vlm_grpo.evaluation.callback import GreedyEvaluation, log_entries
from vlm_grpo.evaluation.metrics import Metric
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


def train(model: Path, folder: Path, rows: Any, **evaluation: Any) -> tuple[list[dict], GreedyEvaluation | None]:
    """The log of four steps over 16 rows (4 rows a step: 4 steps an epoch), with or without evaluation."""
    options = settings(folder, per_device_train_batch_size=8, num_generations=2, max_steps=4)
    trainer = VLMGRPOTrainer(str(model), length_reward, VLMGRPOConfig(**options), train_dataset=rows.select(range(16)))
    callback = None
    if evaluation:
        held_out = rows.select(range(20, 25))
        callback = GreedyEvaluation(
            trainer, held_out, task="default", unwrap=unwrap_model_for_generation, batch_size=2, **evaluation
        )
        trainer.add_callback(callback)
    trainer.train()
    return trainer.state.log_history, callback


def test_greedy_evaluation_logs_on_time_and_changes_nothing(tiny_model: Path, tmp_path: Path, rows: Any):
    plain, _ = train(tiny_model, tmp_path / "plain", rows)
    watched, callback = train(tiny_model, tmp_path / "watched", rows, val_before_train=True, val_freq=0.5)
    evaluations = [entry for entry in watched if "eval_accuracy" in entry]
    assert [entry["step"] for entry in evaluations] == [0, 2, 4]  # 4 steps are an epoch
    assert {"eval_format", "eval_completions/mean_length", "eval_completions/clipped_ratio"} <= set(evaluations[0])
    assert [prediction["row"] for prediction in callback.last.predictions] == [0, 1, 2, 3, 4]

    def steps(log: list[dict]) -> list[dict]:
        timing = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
        return [
            {name: value for name, value in entry.items() if name not in timing}
            for entry in log
            if "eval_accuracy" not in entry
        ]

    assert any(entry.get("grad_norm") for entry in plain)
    assert steps(watched) == steps(plain)  # no metric lost, no random number used up


def callback_at(**options: Any) -> GreedyEvaluation:
    callback = GreedyEvaluation(
        None, [], task="default", unwrap=lambda model, accelerator: None, val_before_train=True, **options
    )
    callback.ran = []
    callback.run = lambda: callback.ran.append(True)
    return callback


def test_greedy_evaluation_counts_periods_in_spite_of_rounding():
    callback = callback_at(val_freq=0.1)
    callback.on_train_begin(None, SimpleNamespace(epoch=0, global_step=0), None)
    callback.ran.clear()
    for step in range(1, 11):  # 0.05, 0.1, ..., 0.5: an evaluation at every second step
        callback.on_step_end(None, SimpleNamespace(epoch=step * 0.05, global_step=step), None)
    assert len(callback.ran) == 5


def test_greedy_evaluation_does_not_start_again_after_a_resume():
    callback = callback_at(val_freq=1.0)
    callback.on_train_begin(None, SimpleNamespace(epoch=1.5, global_step=6), None)
    callback.on_step_end(None, SimpleNamespace(epoch=1.75, global_step=7), None)
    assert callback.ran == []
    callback.on_step_end(None, SimpleNamespace(epoch=2.0, global_step=8), None)
    assert callback.ran == [True]


def test_greedy_evaluation_without_frequency_runs_only_before():
    callback = callback_at(val_freq=0.0)
    callback.on_train_begin(None, SimpleNamespace(epoch=0, global_step=0), None)
    callback.on_step_end(None, SimpleNamespace(epoch=3.0, global_step=9), None)
    assert callback.ran == [True]


def test_greedy_evaluation_refuses_a_negative_frequency():
    with pytest.raises(ValueError, match="--val_freq must be 0"):
        callback_at(val_freq=-1.0)


def test_log_entries_leave_out_metrics_that_never_applied():
    predictions = [{"num_tokens": 4, "is_truncated": False}, {"num_tokens": 8, "is_truncated": True}]
    metrics = {"iou": Metric(0.5, 0.4, 0.6, 2), "accuracy": Metric(None, None, None, 0)}
    assert log_entries(SimpleNamespace(metrics=metrics, predictions=predictions)) == {
        "eval_iou": 0.5,
        "eval_completions/mean_length": 6.0,
        "eval_completions/clipped_ratio": 0.5,
    }
