from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vlm_grpo.evaluation import evaluate, shard, unique_rows
from vlm_grpo.evaluation.predictions import RowCompletions, ScoredText, Scoring, check_group


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that sees every digit as a 7 and forgets to think when the row's number is odd."""

    def complete(dataset: Any, numbers: Any) -> Any:
        right, bare = "<think>a</think><answer>7</answer>", "<answer>7</answer>"
        for number in numbers:
            yield [RowCompletions(number, dataset[number], [ScoredText(bare if number % 2 else right, 5, False)])]

    monkeypatch.setattr("vlm_grpo.evaluation.backends.hf.HFBackend", lambda model, processor, **options: complete)


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


@pytest.mark.usefixtures("answers")
def test_evaluate_breaks_metrics_down_by_group(rows: Any):
    rows = [{**row, "record": replace(row["record"], extra={"parity": "odd" if n % 2 else None})} for n, row in
            enumerate(rows.select(range(10)))]  # fmt: skip
    found = evaluate(None, None, rows, group_by="parity")
    assert list(found.groups) == ["(none)", "odd"]
    assert found.groups["odd"]["format"].value == 0.0 and found.groups["(none)"]["format"].value == 1.0
    assert found.groups["odd"]["format"].count == 5
    assert evaluate(None, None, rows).groups == {}


def test_check_group_names_the_columns_that_there_are(rows: Any):
    check_group(rows.select([0]), "task")
    with pytest.raises(ValueError, match=r"--group_by colour: no row has this column; available are .*task, method"):
        check_group(rows.select([0, 1]), "colour")


def test_several_completions_are_averaged(rows: Any):
    """Two of four are right: accuracy 1/2, pass@1 1/2, pass@2 = 1 - C(2,2)/C(4,2) = 5/6; three have the form."""
    truth = rows[0]["answer"]
    right, wrong = f"<think>a</think><answer>{truth}</answer>", "<think>a</think><answer>none</answer>"
    texts = [right, wrong, right.replace("<think>a</think>", ""), wrong]
    answered = RowCompletions(0, rows[0], [ScoredText(text, 3, False) for text in texts])
    (prediction,) = Scoring("default", pass_k=[1, 2]).predictions([answered])
    assert prediction["scores"] == pytest.approx({"accuracy": 0.5, "format": 0.75, "pass@1": 0.5, "pass@2": 5 / 6})
    assert [sample["scores"]["accuracy"] for sample in prediction["samples"]] == [1.0, 0.0, 1.0, 0.0]
    assert prediction["completion"] == right


@pytest.mark.usefixtures("answers")
def test_evaluate_refuses_contradictions_at_once(rows: Any):
    with pytest.raises(ValueError, match="--num_samples 3 needs --temperature above 0"):
        evaluate(None, None, rows, num_samples=3)
    with pytest.raises(ValueError, match="--pass_k 4 needs --num_samples 4 or more, got 2"):
        evaluate(None, None, rows, num_samples=2, temperature=1.0, pass_k=[4])


def test_evaluate_is_a_name_of_the_package():
    import vlm_grpo

    assert vlm_grpo.evaluate is evaluate
