from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.test_cli import words
from vlm_grpo.cli.evaluate import main
from vlm_grpo.evaluation import prediction_cache
from vlm_grpo.io import write_whole
from vlm_grpo.synthetic import DigitFiles


def test_a_line_cut_short_is_dropped_and_written_again(tmp_path: Path):
    prediction_cache.open_cache(tmp_path, {"a": 1})
    prediction_cache.PredictionWriter(tmp_path, 0)([{"row": 0, "text": "é"}, {"row": 2}])
    with (tmp_path / "predictions.partial-0.jsonl").open("a") as file:
        file.write('{"row": 3, "te')
    assert [entry["row"] for entry in prediction_cache.read_predictions(tmp_path)] == [0, 2]
    prediction_cache.PredictionWriter(tmp_path, 0)([{"row": 3}])
    prediction_cache.PredictionWriter(tmp_path, 1)([{"row": 1}, {"row": 3}])
    assert sorted(entry["row"] for entry in prediction_cache.read_predictions(tmp_path)) == [0, 1, 2, 3]
    prediction_cache.open_cache(tmp_path, {"a": 1})  # the same again
    prediction_cache.remove_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_begin_refuses_what_is_not_the_same_evaluation(tmp_path: Path):
    prediction_cache.open_cache(tmp_path, {"temperature": 0.7, "data": "x", "new": None})
    with pytest.raises(prediction_cache.ResumeError, match=r"temperature: 0.7, now 1.0\n  data: 'x', now 'y'"):
        prediction_cache.open_cache(tmp_path, {"temperature": 1.0, "data": "y"})
    prediction_cache.PredictionWriter(tmp_path, 0)([{"row": 0}])
    prediction_cache.open_cache(tmp_path, {"temperature": 1.0}, overwrite=True)
    assert prediction_cache.read_predictions(tmp_path) == []
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(prediction_cache.ResumeError, match=r"finished evaluation.*--overwrite"):
        prediction_cache.open_cache(tmp_path, {"temperature": 1.0})
    prediction_cache.open_cache(tmp_path, {"temperature": 1.0}, overwrite=True)
    assert not (tmp_path / "results.json").exists()


def test_write_whole_leaves_no_half_file(tmp_path: Path):
    (tmp_path / "x").write_text("old")
    write_whole(tmp_path / "x", "new \ud800")  # what a model says need not be valid Unicode
    assert (tmp_path / "x").read_bytes() == b"new \xed\xa0\x80"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_an_evaluation_goes_on_after_a_kill(
    tiny_model: Path, digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    drawing = ["--temperature", "1.0", "--num_samples", "2", "--pass_k", "1", "2", "--limit", "24", "--batch_size", "2"]
    assert main(words(tiny_model, digits, tmp_path / "whole", *drawing)) == 0
    command = [sys.executable, "-m", "vlm_grpo.cli.evaluate", *words(tiny_model, digits, tmp_path / "killed", *drawing)]
    lines = tmp_path / "killed" / "predictions.partial-0.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = lines.read_bytes().count(b"\n")
    assert 3 <= kept < 24 and not (tmp_path / "killed" / "results.json").exists()
    capsys.readouterr()
    other = ["--temperature", "0.5", *drawing[2:]]
    assert main(words(tiny_model, digits, tmp_path / "killed", *other)) == 2
    assert "1.0" in (said := capsys.readouterr().err) and "0.5" in said and "--overwrite" in said
    assert main(words(tiny_model, digits, tmp_path / "killed", *drawing[:-1], "8")) == 0  # in batches of another size
    assert f"resuming: {kept} of 24 rows" in capsys.readouterr().out
    assert predictions(tmp_path / "killed") == predictions(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "predictions.jsonl", "report.html", "results.json",
    ]  # fmt: skip


def test_a_finished_evaluation_is_replaced_only_when_asked(
    tiny_model: Path, digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(words(tiny_model, digits, tmp_path / "out", "--limit", "2")) == 0
    assert main(words(tiny_model, digits, tmp_path / "out", "--limit", "3")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(predictions(tmp_path / "out")) == 2
    assert main(words(tiny_model, digits, tmp_path / "out", "--limit", "3", "--overwrite")) == 0
    assert len(predictions(tmp_path / "out")) == 3
