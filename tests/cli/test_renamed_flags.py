"""Flags of this package under their former names: they still work, and one line of warning says the new name."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vlm_grpo.cli import eval_args
from vlm_grpo.cli.train_args import parse

TRAIN = (
    "--use_cpu",
    "--report_to=none",
    "--model_name_or_path=m",
    "--data_file_paths=a.jsonl",
    "--reward_funcs=format",
)


def test_a_training_flag_under_its_former_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        words = [*TRAIN, f"--output_dir={tmp_path}", "--environment", "visual_crop", "--tool_protocol", "tags"]
        _, training, _ = parse(words)
    assert training.tool_format == "tags"
    assert [record.message.count("--tool_protocol as --tool_format=tags") for record in caplog.records] == [1]


def test_the_kl_coefficient_under_its_former_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        _, training, _ = parse([*TRAIN, f"--output_dir={tmp_path}", "--kl_in_reward", "0.5"])
    assert training.kl_reward_coef == 0.5
    assert [record.message.count("--kl_in_reward as --kl_reward_coef=0.5") for record in caplog.records] == [1]


def test_an_option_of_an_algorithm_under_its_former_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    words = [*TRAIN, f"--output_dir={tmp_path}", "--algorithm", "hpt", "--algorithm_options", '{"rescue_at": 0.25}']
    with caplog.at_level(logging.WARNING):
        _, training, _ = parse(words)
    assert training.algorithm_options == {"hpt_threshold": 0.25}
    said = "--algorithm_options: rescue_at has been renamed to hpt_threshold; the old name still works"
    assert [record.message for record in caplog.records] == [said]


def test_a_config_file_with_a_former_name(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("tool_protocol: hermes\n", encoding="utf-8")
    flags = [*TRAIN, f"--output_dir={tmp_path}", "--environment", "visual_crop", f"--config={tmp_path / 'c.yaml'}"]
    assert parse(flags)[1].tool_format == "hermes"


def test_an_evaluation_flag_under_its_former_name(caplog: pytest.LogCaptureFixture):
    flags = ["--model_name_or_path", "m", "--output_dir", "out", "--environment", "visual_crop"]
    with caplog.at_level(logging.WARNING):
        options = eval_args.parser().parse_args([*flags, "--tool_protocol", "native"])
    assert options.tool_format == "native"
    assert [record.message for record in caplog.records] == [
        "--tool_protocol has been renamed to --tool_format; the old name still works"
    ]
    assert eval_args.parser().parse_args(flags).tool_format is None
