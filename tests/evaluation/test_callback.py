from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from trl.models import unwrap_model_for_generation

from tests.support.training import length_reward, settings
from vlm_grpo.data import load_dataset
from vlm_grpo.evaluation.aggregate import Metric
from vlm_grpo.evaluation.callback import GreedyEvaluation, log_entries
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


def build(model: Path, folder: Path, rows: Any, **options: Any) -> Any:
    """Four steps over 16 rows (4 rows a step: 4 steps an epoch)."""
    args = settings(folder, per_device_train_batch_size=8, num_generations=2, max_steps=4, **options)
    data = {"train_dataset": rows.select(range(16)), "eval_dataset": rows.select(range(20, 25))}
    return VLMGRPOTrainer(str(model), length_reward, VLMGRPOConfig(**args), **data)


def watch(trainer: Any, **evaluation: Any) -> GreedyEvaluation:
    options = {"val_before_train": False, "val_freq": 0.0, **evaluation}
    callback = GreedyEvaluation(
        trainer, trainer.eval_dataset, task="default", unwrap=unwrap_model_for_generation, batch_size=2, **options
    )
    trainer.add_callback(callback)
    return callback


def train(model: Path, folder: Path, rows: Any, **evaluation: Any) -> tuple[list[dict], GreedyEvaluation | None]:
    """The log of a run, with or without evaluation."""
    trainer = build(model, folder, rows)
    callback = watch(trainer, **evaluation) if evaluation else None
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


def test_the_trainers_own_evaluation_is_the_greedy_one(tiny_model: Path, tmp_path: Path, rows: Any):
    trainer = build(tiny_model, tmp_path, rows, eval_strategy="steps", eval_steps=3, eval_on_start=True)
    watch(trainer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in logged] == [0, 3, 4] and "eval_reward" not in logged[0]


def test_the_weights_with_the_best_metric_come_back(tiny_model: Path, tmp_path: Path, rows: Any):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "load_best_model_at_end": True}
    trainer = build(tiny_model, tmp_path, rows, **options, metric_for_best_model="accuracy")
    watch(trainer)
    scripted = iter([0.1, 0.7, 0.7, 0.4])
    trainer.evaluate_greedily = lambda: {"eval_accuracy": next(scripted)}
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    saved = AutoModelForImageTextToText.from_pretrained(best).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_a_best_metric_that_is_none_of_the_tasks_is_refused_at_once(tiny_model: Path, tmp_path: Path, rows: Any):
    trainer = build(tiny_model, tmp_path, rows, metric_for_best_model="iou")
    with pytest.raises(ValueError, match="must be one of accuracy, format"):
        watch(trainer)


def test_metrics_of_the_whole_data_set_are_logged_too(tiny_model: Path, tmp_path: Path, rows: Any, mixed_file: Path):
    """The random model finds nothing, so both are 0; what counts is that they are there and may choose checkpoints."""
    lines = [json.loads(line) for line in mixed_file.read_text(encoding="utf-8").splitlines()]
    truth = json.dumps([{"Position": [100, 100, 300, 300]}])
    asked = [{**line, "conversations": [line["conversations"][0], {"from": "gpt", "value": truth}]} for line in lines]
    (tmp_path / "ovd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    held_out = load_dataset(str(tmp_path / "ovd.jsonl"), image_folders=str(mixed_file.parent), task="ovd")
    trainer = build(tiny_model, tmp_path, rows, metric_for_best_model="mAP")
    callback = GreedyEvaluation(
        trainer, held_out, task="ovd", val_before_train=False, val_freq=0.0, unwrap=unwrap_model_for_generation
    )
    trainer.add_callback(callback)
    logged = trainer.evaluate()
    assert (logged["eval_mAP"], logged["eval_AP50"], logged["eval_od_ap"]) == (0.0, 0.0, 0.0)
    assert callback.last.metrics["mAP"].count == 6


def callback_at(**options: Any) -> GreedyEvaluation:
    trainer = SimpleNamespace(ran=0, args=SimpleNamespace(metric_for_best_model=None))

    def count() -> None:
        trainer.ran += 1

    trainer.evaluate = count
    return GreedyEvaluation(
        trainer, [], task="default", unwrap=lambda model, accelerator: None, val_before_train=True, **options
    )


def asks(callback: GreedyEvaluation, epoch: float, step: int) -> bool:
    """Whether the callback asks for an evaluation at the end of a step."""
    control = SimpleNamespace(should_evaluate=False)
    callback.on_step_end(None, SimpleNamespace(epoch=epoch, global_step=step), control)
    return control.should_evaluate


def test_greedy_evaluation_counts_periods_in_spite_of_rounding():
    callback = callback_at(val_freq=0.1)
    callback.on_train_begin(None, SimpleNamespace(epoch=0, global_step=0), None)
    assert [step for step in range(1, 11) if asks(callback, step * 0.05, step)] == [2, 4, 6, 8, 10]


def test_greedy_evaluation_does_not_start_again_after_a_resume():
    callback = callback_at(val_freq=1.0)
    callback.on_train_begin(None, SimpleNamespace(epoch=1.5, global_step=6), None)
    assert callback.trainer.ran == 0
    assert [asks(callback, 1.75, 7), asks(callback, 2.0, 8)] == [False, True]


def test_greedy_evaluation_without_frequency_runs_only_before():
    callback = callback_at(val_freq=0.0)
    callback.on_train_begin(None, SimpleNamespace(epoch=0, global_step=0), None)
    assert not asks(callback, 3.0, 9)
    assert callback.trainer.ran == 1


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
