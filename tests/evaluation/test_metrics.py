from __future__ import annotations

import pytest

from vlm_grpo.evaluation.metrics import Metric, load_scorer, mean_with_interval, metric_names, summarize
from vlm_grpo.records import Record


def test_metric_names_put_the_tasks_metric_first():
    assert metric_names("rec") == ["iou@0.5", "iou", "format"]
    assert metric_names("default") == ["accuracy", "format"]
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
    found = summarize(scores, ["accuracy", "iou"])
    assert (found["accuracy"].value, found["accuracy"].count) == (0.5, 2)
    assert (found["iou"].value, found["iou"].count) == (0.5, 1)
    assert str(found["iou"]) == "50.0% [50.0%, 50.0%]"
