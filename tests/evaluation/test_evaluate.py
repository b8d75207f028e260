from __future__ import annotations

import json
from typing import Any

import pytest

from vlm_grpo.evaluation import evaluate, shard, unique_rows
from vlm_grpo.evaluation.generate import Completion


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that sees every digit as a 7 and forgets to think when the row's number is odd."""

    def fake(model: Any, processor: Any, rows: Any, **options: Any) -> list[Completion]:
        right, bare = "<think>a</think><answer>7</answer>", "<answer>7</answer>"
        return [Completion(bare if index % 2 else right, 5, False) for index in range(len(rows))]

    monkeypatch.setattr("vlm_grpo.evaluation.generate.generate_greedy", fake)


@pytest.mark.usefixtures("answers")
def test_evaluate_scores_every_row_with_the_tasks_rewards(rows: Any):
    found = evaluate(None, None, rows, task="default")
    sevens = [index for index in range(len(rows)) if rows[index]["answer"] == "7"]
    assert found.main.value == pytest.approx(len(sevens) / 297)
    assert found.metrics["format"].value == pytest.approx(149 / 297)  # rows 0, 2, ..., 296
    prediction = found.predictions[sevens[0]]
    assert (prediction["predicted"], prediction["answer"], prediction["scores"]["accuracy"]) == ("7", "7", 1.0)
    assert prediction["images"][0].endswith(".png")
    assert json.loads(json.dumps(found.predictions)) == found.predictions


@pytest.mark.usefixtures("answers")
def test_evaluate_takes_the_first_rows(rows: Any):
    found = evaluate(None, None, rows, limit=3)
    assert [prediction["row"] for prediction in found.predictions] == [0, 1, 2]
    assert len(evaluate(None, None, rows, limit=1000).predictions) == 297


def test_evaluate_refuses_no_rows(rows: Any):
    with pytest.raises(ValueError, match="at least one row, got 0 rows"):
        evaluate(None, None, rows.select([]))


def test_shard_gives_every_rank_equally_many_rows():
    assert [shard(5, rank, 2) for rank in range(2)] == [[0, 2, 4], [1, 3, 0]]
    assert [shard(1, rank, 3) for rank in range(3)] == [[0], [0], [0]]
    assert shard(0, 0, 2) == []


def test_unique_rows_restores_the_order_of_the_data():
    gathered = [{"row": row} for rank in range(2) for row in shard(5, rank, 2)]
    assert [prediction["row"] for prediction in unique_rows(gathered)] == [0, 1, 2, 3, 4]
