"""A flag that is given twice has its last value, also where it is read before the parser exists."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.cli.args import argv_value, without_flag
from vlm_grpo.cli.train_args import parse

QUICK = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--num_generations", "4"]
QUICK += ["--per_device_train_batch_size", "4", "--model_name_or_path", "m", "--data_file_paths", "a.jsonl"]


def resolved(folder: Path, *words: str) -> list[dict[str, Any]]:
    """Return every value that a command line comes to, but for a name that holds the time."""
    parts = [dataclasses.asdict(part) for part in parse([*QUICK, "--output_dir", str(folder), *words])]
    return [{name: value for name, value in part.items() if name != "logging_dir"} for part in parts]


@pytest.mark.parametrize(
    ("given", "last"),
    [
        ("--algorithm grpo --algorithm dapo", "--algorithm dapo"),
        ("--algorithm=grpo --algorithm=dapo", "--algorithm dapo"),
        ("--algorithm dapo --algorithm=grpo", "--algorithm grpo"),
        ("--trainer grpo --trainer rloo", "--trainer rloo"),
        ("--trainer=rloo --trainer=grpo", "--trainer grpo"),
        (
            "--algorithm gspo --gradient_accumulation_steps 1 --gradient_accumulation_steps 2",
            "--algorithm gspo --gradient_accumulation_steps 2",
        ),
        (
            "--algorithm gspo --gradient_accumulation_steps 1 --gradient-accumulation-steps=2",
            "--algorithm gspo --gradient_accumulation_steps 2",
        ),
        ("--config {0}/a.yaml --config {0}/b.yaml", "--config {0}/b.yaml"),
        ("--config={0}/b.yaml --config {0}/a.yaml", "--config {0}/a.yaml"),
        ("--config {0}/a.yaml --algorithm dapo", "--algorithm dapo --beta 0.2"),
    ],
)
def test_the_last_value_of_a_flag_counts(given: str, last: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text("algorithm: grpo\nbeta: 0.2\n")
    (tmp_path / "b.yaml").write_text("algorithm: dapo\nepsilon: 0.3\n")
    assert resolved(tmp_path, *given.format(tmp_path).split()) == resolved(tmp_path, *last.format(tmp_path).split())


def test_wanted_value_reads_each_spelling():
    assert argv_value(["--a_b", "1", "--a-b=2"], "a_b") == "2"
    assert argv_value(["--a_b=2", "--a-b"], "a_b") == ""
    assert argv_value(["--a_bc", "1"], "a_b") is None


def test_without_flag_leaves_the_words_of_others():
    words = ["--a", "1", "--b", "2", "3", "--a=4", "5", "--b=6"]
    assert without_flag(words, "b") == ["--a", "1", "--a=4", "5"]
    assert without_flag(words, "b", at_most=1) == ["--a", "1", "3", "--a=4", "5"]
    assert without_flag(words, "a", at_most=1) == ["--b", "2", "3", "5", "--b=6"]
