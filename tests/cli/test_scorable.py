"""Rewards that no row can earn and rows that are too few end a run before the model is loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.data.files import turns, write_images, write_jsonl
from tests.support.training import length_reward, settings, user
from vlm_grpo.cli.scorable import check_scorable
from vlm_grpo.cli.train import run
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.data import load_dataset
from vlm_grpo.records import Record
from vlm_grpo.rewards import REWARDS, score
from vlm_grpo.rewards.applicability import FORMAT_REWARDS, is_applicable
from vlm_grpo.tasks import ideal_completion
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

COUNT = {"conversations": turns("<image>q", "3"), "image": "0.png"}
BOX = {"conversations": turns("<image>q", {"bbox_2d": [1, 1, 4, 4]}), "image": "0.png", "task": "rec"}
TEXT = {"conversations": turns("<image>q", "a dog"), "image": "0.png"}


def rows(folder: Path, *entries: dict[str, Any], **options: Any) -> Any:
    return load_dataset(
        write_jsonl(folder / "a.jsonl", list(entries)), image_folders=str(write_images(folder)), **options
    )


def words(folder: Path, *entries: dict[str, Any], **flags: object) -> list[str]:
    data = write_jsonl(folder / "a.jsonl", list(entries))
    given = {
        "model_name_or_path": "no/model", "data_file_paths": data, "image_folders": write_images(folder),
        "output_dir": folder / "out", "use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 2,
        "per_device_train_batch_size": 2, "max_steps": 1, "dry_run": True, **flags,
    }  # fmt: skip
    return [word for name, value in given.items() for word in (f"--{name}", *str(value).split())]


def test_a_reward_that_applies_to_no_row_is_refused(tmp_path: Path):
    with pytest.raises(UsageError) as error:
        run(words(tmp_path, COUNT, COUNT, reward_funcs="accuracy format iou:2 reasoning_overlap"))
    assert "reward 'iou' applies to none of the 2 rows: it needs one box as the gold answer" in str(error.value)
    assert "reward 'reasoning_overlap' applies to none of the 2 rows: it needs the column reference_steps" in str(
        error.value
    )
    assert "remove it (--reward_funcs accuracy format), or" in str(error.value)


def test_rewards_that_apply_to_some_rows_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        check_scorable(["iou", "count", "format"], rows(tmp_path, COUNT, BOX, TEXT, BOX))
    said = [record.message for record in caplog.records]
    assert [text.split(":")[0] for text in said] == [
        "reward 'iou' applies to 2 of 4 rows",
        "reward 'count' applies to 1 of 4 rows",
        "1 rows are scored by format rewards only",
    ]
    assert "a.jsonl:1)" in said[0] and said[2].endswith("a.jsonl:3")


def test_own_rewards_and_rewards_of_form_alone_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dataset = rows(tmp_path, TEXT, COUNT)
    check_scorable(["format", "overlong"], dataset)
    check_scorable(["own.py:mine"], dataset)
    assert not caplog.records
    check_scorable(["own.py:mine", "count"], dataset)
    assert len(caplog.records) == 1  # that count applies to some: the other row may be scored by the own reward
    check_scorable(["iou"], rows(tmp_path, COUNT, streaming=True))


RECORDS = (
    Record("1", "q", "3"),
    Record("2", "q", "a dog", method="numeric"),
    Record("3", "q", {"bbox_2d": [1, 1, 4, 4]}, task="rec"),
    Record("4", "q", [{"bbox_2d": [1, 1, 4, 4], "label": "a"}], task="ovd"),
    Record("5", "q", "3", reference_steps=("a step",), task="vqa"),
    Record("6", "q", "B", options=("a", "b")),
    Record("7", "q", "yes", extra={"tools": ["zoom"]}),
    Record("8", "q", "x^2", task="math"),
    Record("9", "q", None),
)
QUICK = [name for name in REWARDS if name not in ("judge", "reasoning", "reasoning_ordered", "causal")]


@pytest.mark.parametrize("name", QUICK)
def test_applies_says_what_the_reward_does(name: str):
    """A reward applies where it gives some completion a number, the right one or another."""
    for record in RECORDS:
        texts = ["<answer>x</answer>", "" if record.answer is None else ideal_completion(record)]
        values = [score(name, text, record=record) for text in texts]
        assert is_applicable(name, record) == any(value is not None for value in values), record.id
    assert name in FORMAT_REWARDS or not is_applicable(name, RECORDS[-1])


@pytest.mark.parametrize("name", ["reasoning", "reasoning_ordered", "causal"])
def test_rewards_of_steps_need_steps(name: str):
    assert [record.id for record in RECORDS if is_applicable(name, record)] == ["5"]


def test_too_few_rows_are_refused_with_what_is_needed(tmp_path: Path):
    given = {"num_generations": 2, "per_device_train_batch_size": 4, "steps_per_generation": 4}
    with pytest.raises(UsageError, match="3 rows are fewer than the 8 prompts of one rollout") as error:
        run(words(tmp_path, COUNT, COUNT, COUNT, **given))
    for part in ("--per_device_train_batch_size 4", "--steps_per_generation 4", "16 completions", "at least 8 rows"):
        assert part in str(error.value)
    run(words(tmp_path, *[COUNT] * 8, **given))


def test_too_few_rows_of_a_trainer_in_python(tiny_model: Path, tmp_path: Path):
    data = Dataset.from_list([{"prompt": user("q")}])
    args = VLMGRPOConfig(**settings(tmp_path, per_device_train_batch_size=8, num_generations=2))
    trainer = VLMGRPOTrainer(str(tiny_model), [length_reward], args, train_dataset=data)
    with pytest.raises(ValueError, match=r"train_dataset: 1 rows are fewer than the \d+ prompts of one rollout"):
        trainer.train()
