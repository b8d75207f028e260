from __future__ import annotations

import pytest

from vlm_grpo.evaluation.aggregate import (
    Metric,
    evidence_names,
    load_scorer,
    mean_with_interval,
    metric_names,
    reward_names,
    summarize,
)
from vlm_grpo.evaluation.dataset_metrics import DATASET_METRICS
from vlm_grpo.records import Record
from vlm_grpo.rewards import REWARDS
from vlm_grpo.tasks import TASKS


def test_metric_names_put_the_tasks_metric_first():
    assert metric_names("rec") == ["iou@0.5", "iou@0.3", "iou@0.7", "iou", "format"]
    assert metric_names("grounding") == metric_names("rec")
    assert metric_names("default") == ["accuracy", "format"]
    assert metric_names("vqa") == ["accuracy", "reasoning", "format"]
    assert metric_names("seg")[:2] == ["gIoU", "cIoU"]
    assert metric_names("ovd")[:2] == ["mAP", "AP50"]
    with pytest.raises(KeyError, match="unknown task 'rek'; did you mean 'rec'"):
        metric_names("rek")


def test_scorer_uses_the_training_rewards():
    record = Record(id=1, question="Which digit?", answer="7")
    names = ["accuracy", "format"]
    assert load_scorer(names)(["<think>a</think><answer>7</answer>"], [record])[0] == {"accuracy": 1.0, "format": 1.0}
    assert load_scorer(names)(["<answer>7</answer>"], [record])[0] == {"accuracy": 1.0, "format": 0.0}
    assert load_scorer(names)(["<think><answer>7</answer></think>"], [record])[0]["accuracy"] == 0.0


def test_mean_with_interval_matches_the_normal_approximation():
    """400 examples, a quarter right: 1.96 * sqrt(0.25 * 0.75 / 400) = 0.0424."""
    metric = mean_with_interval([1.0] * 100 + [0.0] * 300)
    assert (metric.value, metric.count) == (0.25, 400)
    assert metric.low == pytest.approx(0.25 - 0.0424, abs=0.005)
    assert metric.high == pytest.approx(0.25 + 0.0424, abs=0.005)


def test_mean_with_interval_of_equal_values_is_a_point():
    assert mean_with_interval([1.0, 1.0, 1.0]) == Metric(1.0, 1.0, 1.0, 3)


def test_mean_with_interval_of_nothing_is_not_applicable():
    assert mean_with_interval([]) == Metric(None, None, None, 0)
    assert str(mean_with_interval([])) == "not applicable"


def test_mean_with_interval_repeats_itself():
    values = [(index % 17) / 17 for index in range(60)]
    assert mean_with_interval(values, seed=3) == mean_with_interval(values, seed=3)
    assert mean_with_interval(values, seed=3) != mean_with_interval(values, seed=4)


def test_summarize_leaves_out_what_does_not_apply():
    scores = [{"accuracy": 1.0, "iou": None}, {"accuracy": 0.0, "iou": 0.5}, {"accuracy": None, "iou": None}]
    found = summarize([{"scores": row} for row in scores], ["accuracy", "iou"])
    assert (found["accuracy"].value, found["accuracy"].count) == (0.5, 2)
    assert (found["iou"].value, found["iou"].count) == (0.5, 1)
    assert str(found["iou"]) == "50.0% [50.0%, 50.0%]"


@pytest.mark.parametrize("task", list(TASKS))
def test_every_metric_of_every_task_can_be_computed(task: str):
    assert all(name in DATASET_METRICS or name in REWARDS for name in metric_names(task))
    assert all(name in REWARDS for name in reward_names(task))
    assert reward_names(task)[0] == TASKS[task].metric


def test_summarize_takes_measures_from_evidence():
    """Masks with IoU 10/20 and 90/90: their mean is 0.75, all intersections over all unions 100/110."""
    predictions = [
        {"scores": {"mask_iou": 0.5}, "evidence": {"mask": [[10, 20]]}},
        {"scores": {"mask_iou": 1.0}, "evidence": {"mask": [[90, 90]]}},
        {"scores": {"mask_iou": None}, "evidence": {"mask": [None]}},
    ]
    assert evidence_names("seg") == ["mask"]
    found = summarize(predictions, ["gIoU", "cIoU", "mask_iou"])
    assert (found["gIoU"].value, found["gIoU"].count) == (0.75, 2)
    assert found["cIoU"].value == pytest.approx(100 / 110)
    # Draws are 0.5, 100/110, 100/110 or 1 in equal parts: their mean is 0.83, the value 0.91, so all move up by 0.08.
    assert (found["cIoU"].low, found["cIoU"].high) == (pytest.approx(0.58, abs=0.01), 1.0)
    assert summarize([{"scores": {}}], ["cIoU"])["cIoU"] == Metric(None, None, None, 0)


def test_measures_are_the_mean_over_several_completions():
    """First completions: (10 + 0) / (20 + 80) = 0.1; second ones: (20 + 80) / (20 + 80) = 1."""
    predictions = [
        {"scores": {}, "evidence": {"mask": [[10, 20], [20, 20]]}},
        {"scores": {}, "evidence": {"mask": [[0, 80], [80, 80]]}},
    ]
    assert summarize(predictions, ["cIoU"])["cIoU"].value == pytest.approx(0.55)
