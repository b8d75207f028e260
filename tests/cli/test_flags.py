"""Every flag of this package does what it says: each test fails when its flag is ignored. No training is run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.data.files import png, turns, write_images, write_jsonl
from vlm_grpo.cli.arguments import ScriptArguments
from vlm_grpo.cli.train import UsageError, build_trainer, check_rewards, load_data, parse
from vlm_grpo.rewards import reasoning
from vlm_grpo.trainers.config import VisionFields
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

QUICK = [
    "--use_cpu",
    "true",
    "--bf16",
    "false",
    "--report_to",
    "none",
    "--per_device_train_batch_size",
    "4",
    "--num_generations",
    "4",
]
TESTED = {
    *("trainer", "data_file_paths", "image_folders", "reward_method", "dataset_name", "use_huggingface_dataset"),
    *("task_type", "reward_funcs", "format_prompt", "prompt_key", "answer_key", "image_key", "allow_outside"),
    *("val_split_ratio", "val_before_train", "val_freq", "dry_run"),  # dry_run: test_train.py
    *("max_pixels", "min_pixels", "freeze_vision_modules"),
    *("reasoning_encoder", "reasoning_device", "reasoning_threshold"),
}


def test_no_flag_is_without_a_test():
    assert {field.name for kind in (ScriptArguments, VisionFields) for field in fields(kind)} == TESTED


@pytest.fixture
def jsonl(tmp_path: Path) -> list[str]:
    """Flags of a jsonl file with four rows."""
    rows = [{"image": f"{n % 3}.png", "conversations": turns("<image>q", str(n))} for n in range(4)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    return ["--data_file_paths", path, "--image_folders", str(write_images(tmp_path))]


def rows(tmp_path: Path, *words: str) -> Any:
    """The training rows of a command line."""
    return load_data(*parse([*words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])[:2])[0]


def trainer(model: Path, tmp_path: Path, *words: str) -> Any:
    """The trainer that a command line makes."""
    given = ["--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    script, training, model_config = parse([*words, *QUICK, *given])
    return build_trainer(script, training, model_config, *load_data(script, training))


def test_files_folders_and_methods_pair_up(tmp_path: Path):
    sources = []
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_images(tmp_path / name)
        row = {"image": f"{number}.png", "conversations": turns("<image>q", name)}
        sources.append(write_jsonl(tmp_path / f"{name}.jsonl", [row]))
    folders = f"{tmp_path}/a/images:{tmp_path}/b/images"
    flags = ["--data_file_paths", ":".join(sources), "--image_folders", folders, "--reward_method", "exact:text"]
    read = rows(tmp_path, *flags)
    assert [row["images"][0].source for row in read] == [f"{tmp_path}/a/images/0.png", f"{tmp_path}/b/images/1.png"]
    assert [row["record"].method for row in read] == ["exact", "text"]


@pytest.mark.parametrize("extra", [[], ["--use_huggingface_dataset", "true"]])
def test_dataset_name_and_keys(tmp_path: Path, extra: list[str]):
    data = {"ask": ["q0", "q1"], "gold": ["7", "8"], "pic": [{"bytes": png(), "path": None}] * 2}
    Dataset.from_dict(data).to_parquet(tmp_path / "data.parquet")
    keys = ["--prompt_key", "ask", "--answer_key", "gold", "--image_key", "pic"]
    read = rows(tmp_path, "--dataset_name", str(tmp_path / "data.parquet"), *keys, *extra)
    assert [row["answer"] for row in read] == ["7", "8"]
    assert read[1]["record"].question.endswith("q1") and read[1]["images"][0].source == png()
    assert not rows(tmp_path, "--dataset_name", str(tmp_path / "data.parquet"), *keys[:4])[0]["images"]
    for number in (0, 2):
        with pytest.raises(UsageError, match="missing or null"):
            rows(tmp_path, "--dataset_name", str(tmp_path / "data.parquet"), *keys[:number], *keys[number + 2 :])


def test_use_huggingface_dataset_alone_is_refused(jsonl: list[str], tmp_path: Path):
    with pytest.raises(UsageError, match="--use_huggingface_dataset needs --dataset_name"):
        rows(tmp_path, *jsonl, "--use_huggingface_dataset", "true")


def test_image_folders_serve_a_dataset_too(tmp_path: Path):
    Dataset.from_dict({"problem": ["q"], "answer": ["a"], "image": ["2.png"]}).to_parquet(tmp_path / "d.parquet")
    folder = str(write_images(tmp_path))
    read = rows(tmp_path, "--dataset_name", str(tmp_path / "d.parquet"), "--image_folders", folder)
    assert read[0]["images"][0].source == f"{folder}/2.png"


def test_allow_outside(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png())
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "../x.png", "conversations": turns("<image>q", "a")}])
    flags = ["--data_file_paths", path, "--image_folders", str(write_images(tmp_path))]
    with pytest.raises(UsageError, match="a path inside"):
        rows(tmp_path, *flags)
    assert len(rows(tmp_path, *flags, "--allow_outside", "true")) == 1


def test_task_type_and_format_prompt_make_the_prompt(jsonl: list[str], tmp_path: Path):
    def text(*words: str) -> str:
        blocks = rows(tmp_path, *jsonl, *words)[0]["prompt"][-1]["content"]
        return "".join(block.get("text", "") for block in blocks)

    (tmp_path / "own.jinja").write_text("Say it loudly: {{ question }}")
    assert "reasoning_steps" in text("--task_type", "vqa") and "reasoning_steps" not in text()
    assert text("--format_prompt", str(tmp_path / "own.jinja")).startswith("Say it loudly")


def test_trainer_rewards_and_weights(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--trainer", "rloo", "--reward_funcs", "accuracy:2", "format")
    assert type(made) is VLMRLOOTrainer
    assert (made.reward_func_names, made.reward_weights.tolist()) == (["accuracy", "format"], [2.0, 1.0])
    made = trainer(tiny_model, tmp_path, *jsonl, "--task_type", "rec")
    assert type(made) is VLMGRPOTrainer and made.reward_func_names == ["iou", "format"]


def test_validation_flags(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    flags = ["--val_split_ratio", "0.25", "--val_before_train", "true", "--val_freq", "0.5"]
    made = trainer(tiny_model, tmp_path, *jsonl, *flags)
    (callback,) = [c for c in made.callback_handler.callbacks if type(c).__name__ == "GreedyEvaluation"]
    assert (len(made.train_dataset), len(callback.held_out)) == (3, 1)
    assert (callback.val_before_train, callback.val_freq) == (True, 0.5)


def test_pixel_limits_and_freezing(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--min_pixels", "1568", "--max_pixels", "3136")
    size = made.processing_class.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (1568, 3136)
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    made = trainer(tiny_model, tmp_path, *jsonl, "--freeze_vision_modules", "true")
    frozen = {name.split(".")[1] for name, parameter in made.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"visual"}


def test_reasoning_flags(jsonl: list[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(reasoning, "load_embedder", lambda *names: asked.append(names))
    flags = ["--reasoning_encoder", "mine", "--reasoning_device", "cuda", "--reasoning_threshold", "0.5"]
    trainer(tiny_model, tmp_path, *jsonl, "--task_type", "vqa", *flags)
    assert asked == [("mine", "cuda")]
    with pytest.raises(ValueError, match="unknown encoder 'mine'"):
        trainer(tiny_model, tmp_path, *jsonl, "--task_type", "vqa", *flags[:4])


def test_rewards_are_checked_before_data_and_model(jsonl: list[str], tmp_path: Path):
    def check(*words: str) -> None:
        check_rewards(*parse([*jsonl, *words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])[:2])

    check()
    with pytest.raises(UsageError, match="unknown reward 'acuracy'; did you mean 'accuracy'"):
        check("--reward_funcs", "acuracy")
    with pytest.raises(UsageError, match=r"no such file 'mine\.py'"):
        check("--reward_funcs", "mine.py:f")
    with pytest.raises(UsageError, match="unknown task 'rek'; did you mean 'rec'"):
        check("--task_type", "rek")
    with pytest.raises(UsageError, match="--reasoning_device without the reward 'reasoning'"):
        check("--reasoning_device", "cuda")
    with pytest.raises(UsageError, match="unknown encoder 'mine'"):
        check("--task_type", "vqa", "--reasoning_encoder", "mine")
