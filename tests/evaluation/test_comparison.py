from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vlm_grpo.cli.compare import changed_settings, main
from vlm_grpo.evaluation.comparison import (
    CompareError,
    common_rows,
    compare_runs,
    dataset_metric_difference,
    mcnemar,
    permutation,
    read_run,
    score_difference,
)


def write_run(folder: Path, scores: list[float], data: str = "d", task: str = "default", **setting: object) -> Path:
    folder.mkdir()
    lines = [
        {
            "row": row, "data": f"{data}{row}", "id": row, "question": "which?", "images": [], "answer": "7",
            "predicted": str(value), "scores": {"accuracy": value}, "completion": f"text {row}", "num_tokens": 1,
            "is_truncated": False,
        }
        for row, value in enumerate(scores)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    results = {"task": task, "metrics": {"accuracy": {}}, "settings": setting}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_mcnemar_equals_the_exact_binomial_test():
    """By hand: 1 gained, 5 lost: 2 * (1 + 6) / 64."""
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    for gained, lost in ((0, 0), (0, 7), (12, 12), (30, 55), (2000, 2100)):
        expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(expected)


def test_permutation_equals_scipys():
    """By hand: changes 1, 1, 1: only +++ and --- are as large, 2 of 8."""
    assert permutation(np.array([1.0, 1.0, 1.0, 0.0])) == 0.25
    few = np.array([0.3, -0.1, 0.25, 0.05, 0.4, -0.2, 0.0, 0.15])
    expected = stats.permutation_test((few,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert permutation(few) == pytest.approx(expected)
    many = np.random.default_rng(0).normal(0.15, 1, 200)
    close = stats.permutation_test((many,), np.sum, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    assert permutation(many) == pytest.approx(close, abs=0.012)
    assert permutation(np.zeros(4)) == 1.0


def test_of_scores_takes_the_test_that_fits():
    """40 of 100 right, then 60, all changes gains: the mean rises by 0.2 +- 1.96 * sqrt(0.2 * 0.8 / 100) = 0.078."""
    pairs = [(1.0, 1.0)] * 40 + [(0.0, 1.0)] * 20 + [(0.0, 0.0)] * 40
    found = score_difference("accuracy", pairs)
    assert (found.first, found.second, found.count) == (0.4, 0.6, 100)
    assert (found.low, found.high) == pytest.approx((0.2 - 0.078, 0.2 + 0.078), abs=0.015)
    assert (found.test, found.p) == ("McNemar, exact", pytest.approx(2 / 2**20))
    graded = score_difference("iou", [(0.5, 0.75), (0.25, 0.5)])
    assert (graded.test, graded.p) == ("paired permutation", 0.5)


def test_of_measure_exchanges_whole_examples():
    """cIoU 15/50 against 55/60; with each example better in the second run, p is small; with equal runs it is 1."""
    first, second = [[5, 25], [10, 25]], [[25, 30], [30, 30]]
    pairs = [([one], [other]) for one, other in zip(first * 10, second * 10, strict=True)]
    found = dataset_metric_difference("cIoU", pairs)
    assert (found.first, found.second) == pytest.approx((15 / 50, 55 / 60))
    assert found.low < 55 / 60 - 15 / 50 < found.high
    assert found.p == pytest.approx(1 / 2001)
    assert dataset_metric_difference("cIoU", [(one, one) for one, _ in pairs]).p == 1.0
    assert dataset_metric_difference("cIoU", [([[1, 2]], [[1, 2], [1, 2]])]) is None


def test_compare_uses_the_rows_that_both_have(tmp_path: Path):
    first = read_run(write_run(tmp_path / "a", [0.0, 0.0, 1.0, 1.0]))
    second = read_run(write_run(tmp_path / "b", [1.0, 0.0, 1.0]))
    (found,) = compare_runs(first, second)
    assert (found.first, found.second, found.count, found.p) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3, 1.0)


def test_compare_prints_and_writes_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture):
    first = write_run(tmp_path / "a", [0.0, 0.0, 1.0, 1.0], temperature=0.0, output_dir="a")
    second = write_run(tmp_path / "b", [1.0, 0.0, 1.0, 0.0], temperature=1.0, output_dir="b")
    assert main([str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert "--temperature: A 0.0, B 1.0" in said and "--output_dir" not in said and "prompts" not in said
    assert "McNemar, exact" in said and "+0.0%" in said
    text = (second / "compare.html").read_text(encoding="utf-8")
    assert "1 are better in B, 1 are worse, 2 are the same" in text
    assert [entry["n"] for entry in page_data(text)] == [0, 3]
    assert [entry["g"] for entry in page_data(text)] == [["gained"], ["lost"]]
    assert main([str(first), str(second), "--all_rows", "--output", str(tmp_path / "all.html")]) == 0
    assert len(page_data((tmp_path / "all.html").read_text(encoding="utf-8"))) == 4


def test_compare_says_that_prompts_differ():
    first, second = ({"settings": {}, "rows": 3, "prompts": name} for name in "xy")
    assert changed_settings(first, second) == ["the prompts around the questions differ"]
    assert changed_settings(first, {**second, "rows": 2}) == []


def page_data(text: str) -> list[dict]:
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": "e"}, "have different data: row 0 and 1 more of 2"),
        ({"task": "rec"}, "the tasks differ"),
        ({"scores": []}, "no row in common"),
    ],
)
def test_compare_refuses_other_data(other: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_run(tmp_path / "a", [0.0, 1.0])
    write_run(tmp_path / "b", **{"scores": [0.0, 1.0], **other})
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert message in capsys.readouterr().err


def test_compare_refuses_predictions_that_do_not_say_of_which_data(tmp_path: Path):
    runs = [read_run(write_run(tmp_path / name, [1.0])) for name in "ab"]
    del runs[0].predictions[0]["data"], runs[1].predictions[0]["data"]
    with pytest.raises(CompareError, match="have different data"):
        common_rows(*runs)


def test_compare_refuses_a_folder_without_results(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "not a finished evaluation" in capsys.readouterr().err


def test_compare_looks_for_moved_images(tmp_path: Path):
    from PIL import Image

    from vlm_grpo.evaluation.report.comparison_page import _file

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert _file("/gone/x.png", str(tmp_path)) == str(tmp_path / "x.png")
    assert _file("/gone/x.png", None) == "/gone/x.png"
