"""A score that is no number: what is written stays JSON, and the page shows its cards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.evaluation.test_comparison import write_run
from tests.evaluation.test_samples_page import data, prediction
from vlm_grpo.evaluation import Evaluation
from vlm_grpo.evaluation.aggregate import Metric
from vlm_grpo.evaluation.comparison import CompareError, read_run
from vlm_grpo.evaluation.results import write_results
from vlm_grpo.evaluation.strict_json import dumps, loads


def strict(text: str) -> object:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_no_number_is_null_and_everything_else_stays():
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "c": "NaN", "d": (True, None, 3)}
    assert strict(dumps(value)) == {"a": [1.5, None, {"b": None}], "c": "NaN", "d": [True, None, 3]}
    assert dumps({"a": object()}, default=lambda _: "x") == '{"a": "x"}'
    with pytest.raises(ValueError, match="NaN is not a JSON number"):
        loads('{"a": NaN}')


def test_an_evaluation_with_such_scores_is_written_and_shown(tmp_path: Path):
    scores = [math.nan, 0.5, math.inf, None, 1.0]
    predictions = [prediction(number, score) for number, score in enumerate(scores)]
    evaluation = Evaluation("default", {"accuracy": Metric(math.nan, math.nan, math.nan, 5)}, predictions, {})
    write_results(tmp_path, "title", evaluation, [], {})
    assert strict((tmp_path / "results.json").read_text())["metrics"]["accuracy"]["value"] is None
    lines = [strict(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["scores"]["accuracy"] for line in lines] == [None, 0.5, None, None, 1.0]
    page = (tmp_path / "report.html").read_text()
    entries = data(page)
    assert [entry["n"] for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry["s"] for entry in entries] == [None, 0.5, None, None, 1.0]
    assert [entry["a"][0]["r"] for entry in entries] == [None, True, None, None, True]
    assert "2 scores are not finite" in page


def test_predictions_that_are_no_json_are_not_compared(tmp_path: Path):
    folder = write_run(tmp_path / "a", [0.0, math.nan])
    with pytest.raises(CompareError, match="NaN is not a JSON number"):
        read_run(folder)
