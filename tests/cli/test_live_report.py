"""`--live_report`, from the command line and on several processes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_train import flags
from tests.trainers.test_distributed import train, write_data
from vlm_grpo.cli.train import build_trainer, load_data, train_and_save
from vlm_grpo.cli.train_args import parse
from vlm_grpo.evaluation.report.dashboard import LiveReport


def data_of(folder: Path) -> dict[str, Any]:
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("words", "is_there"),
    [([], True), (["--live_report", "true"], True), (["--live_report", "false"], False), (["--no_live_report"], False)],
)
def test_the_flag_decides(words: list[str], is_there: bool, tiny_model: Path, tmp_path: Path):
    script, training, model = parse([*flags(tiny_model, tmp_path), *words])
    trainer = build_trainer(script, training, model, *load_data(script, training))
    assert any(isinstance(callback, LiveReport) for callback in trainer.callback_handler.callbacks) == is_there
    assert (trainer.watch_rollout is not None) == is_there


def test_a_training_shows_the_evaluation_before_its_first_step(tiny_model: Path, tmp_path: Path):
    words = ["--val_split_ratio", "0.5", "--val_before_train", "true", "--logging_steps", "1"]
    script, training, model = parse([*flags(tiny_model, tmp_path), *words])
    train_and_save(build_trainer(script, training, model, *load_data(script, training)), None)
    data = data_of(tmp_path / "out")
    assert [mark["step"] for mark in data["marks"]] == [0] and "eval_accuracy" in data["marks"][0]["values"]
    assert [row[0] for row in data["points"]] == [1] and data["groups"][0]["truth"] in "0123"
    assert list(data["groups"][0]["completions"][0]["rewards"]) == ["accuracy", "format"]


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_two_processes_write_one_page(mode: str, tiny_model: Path, tmp_path: Path):
    """Only the second process has more to do without a page; they would wait for each other for ever."""
    write_data(tmp_path)
    history = train(mode, "grpo", tiny_model, tmp_path, max_steps=2, save_strategy="no")
    data = data_of(tmp_path / mode)
    place = data["columns"].index("reward") + 1
    logged = [entry["reward"] for entry in history if "reward" in entry]
    assert [row[place] for row in data["points"]] == pytest.approx(logged, rel=1e-4) and data["facts"]["processes"] == 2
    assert [(group["step"], len(group["completions"])) for group in data["groups"]] == [(1, 4), (2, 4)]
    means = [sum(c["reward"] for c in group["completions"]) / 4 for group in data["groups"]]
    assert means != pytest.approx(logged)  # of one process's four completions, not of all eight
    assert all(any(c["advantage"] for c in group["completions"]) for group in data["groups"])
    assert len(list((tmp_path / mode / "report" / "images").iterdir())) == len(
        {n for g in data["groups"] for n in g["images"]}
    )
