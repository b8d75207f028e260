"""Batch sizes that are no whole groups: the flags, their product, and the nearest values that fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_grpo.cli.batch_sizes import validate_batch_sizes
from vlm_grpo.cli.train_args import UsageError, parse

QUICK = ["--use_cpu", "--report_to", "none", "--model_name_or_path", "m", "--data_file_paths", "a.jsonl"]


@pytest.mark.parametrize(
    ("given", "processes", "said"),
    [
        (
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 1",
            1,
            "whole groups of --num_generations 8 (default), got --per_device_train_batch_size 4 x "
            "--gradient_accumulation_steps 1 x 1 process = 4; nearest valid: --per_device_train_batch_size 8, or "
            "--gradient_accumulation_steps 2, or --num_generations 4",
        ),
        (
            "--per_device_train_batch_size 3 --num_generations 4",
            2,
            "got --per_device_train_batch_size 3 x --gradient_accumulation_steps 1 (default) x 2 processes = 6; "
            "nearest valid: --per_device_train_batch_size 2 or 4, or --gradient_accumulation_steps 2, or "
            "--num_generations 3 or 6",
        ),
        (
            "--algorithm gspo --per_device_train_batch_size 1 --num_generations 6",
            1,
            "got --per_device_train_batch_size 1 x --steps_per_generation 4 (of --algorithm gspo) x 1 process = 4; "
            "nearest valid: --per_device_train_batch_size 3, or --num_generations 4",
        ),
        (
            "--generation_batch_size 20 --per_device_train_batch_size 4",
            1,
            "--generation_batch_size 20: must be a multiple of --per_device_train_batch_size 4 x 1 process = 4 and of "
            "--num_generations 8; nearest valid: 16 or 24",
        ),
        ("--num_generations none", 1, "--num_generations none: must be a whole number"),
        (
            "--trainer rloo --per_device_train_batch_size 3",
            1,
            "whole groups of --num_generations 2 (default), got --per_device_train_batch_size 3",
        ),
    ],
)
def test_the_message_names_what_was_set_and_what_would_fit(
    given: str, processes: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(UsageError) as caught:
        parse([*QUICK, "--output_dir", str(tmp_path), *given.split()])
    assert said in str(caught.value)


def test_every_value_that_is_named_fits():
    for batch in range(1, 9):
        for steps in range(1, 5):
            for group in range(2, 9):
                values = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
                values["num_generations"] = group
                (problem,) = validate_batch_sizes(values, list(values), None) or [""]
                assert bool(problem) == (batch * steps % group > 0)
                for part in problem.partition("nearest valid: ")[2].split(", or ") if problem else ():
                    name, *numbers = part.replace("--", "").replace(" or ", " ").split()
                    for number in numbers:
                        assert validate_batch_sizes({**values, name: int(number)}, list(values), None) == []
