"""Every task from drawn data to a checkpoint, through the entry point of grpo_jsonl.py and with its own rewards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.cli.evaluate import main as evaluate
from vlm_grpo.cli.list import task_lines
from vlm_grpo.cli.train import main as train
from vlm_grpo.data import load_dataset
from vlm_grpo.prompts import PROMPTS
from vlm_grpo.records import Record
from vlm_grpo.rewards import score
from vlm_grpo.synthetic import TOYS, ToyFiles, write_toy
from vlm_grpo.tasks import TASKS, ideal_completion

ROWS, SIDE = 10, 112
FULL = {"seg": {"mask_iou": 0.75}}  # eight terms do not draw every star
# What a wrong but well-formed answer is; elsewhere this number.
WRONG: Mapping[str, Any] = {
    "default": "12",
    "rec": {"bbox_2d": [0, 0, 3, 3]},
    "grounding": {"bbox_2d": [0, 0, 3, 3]},
    "seg": {"chebyshev": [{"bbox_2d": [0, 0, 9, 9], "x": [0, 50, 0, 0, 0, 0, 0, 0], "y": [0, 0, 50, 0, 0, 0, 0, 0]}]},
    "ovd": [{"Position": [0, 0, 3, 3], "Confidence": 1.0}],
    "counting": "99",
    "math": "-7",
    "vqa": "Z",
    "gui": ["a broken icon"],
    "video": "nowhere",
    **dict.fromkeys(("damaged", "search", "visual_code"), "nothing"),
}


def task_of(name: str) -> str:
    return name if name in TASKS else "default"


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ToyFiles]:
    folder = tmp_path_factory.mktemp("toys")
    return {name: write_toy(name, folder / name, rows=ROWS, side=SIDE) for name in TOYS}


def words(model: Path, files: ToyFiles, **options: object) -> list[str]:
    flags = {"model_name_or_path": model, "data_file_paths": files.train, "image_folders": files.images, **options}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def training_words(model: Path, files: ToyFiles, output: Path, task: str, **options: object) -> list[str]:
    settings = {
        "task_type": task,
        "output_dir": output,
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        **options,
    }
    return words(model, files, **settings)


def records(files: ToyFiles) -> list[Record]:
    rows = load_dataset(f"{files.train}:{files.held_out}", image_folders=str(files.images))
    return [rows[number]["record"] for number in range(len(rows))]


@pytest.mark.parametrize("name", list(TOYS))
def test_a_task_trains_with_its_own_rewards(name: str, tiny_model: Path, toys: Mapping[str, ToyFiles], tmp_path: Path):
    task = task_of(name)
    assert train(training_words(tiny_model, toys[name], tmp_path / "out", task)) == 0
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (checkpoint / "model.safetensors").is_file()
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    steps = [entry for entry in history if "reward" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    for reward in TASKS[task].rewards:
        assert all(f"rewards/{reward}/mean" in entry for entry in steps)


@pytest.mark.parametrize("name", list(TOYS))
def test_the_right_answer_earns_everything_and_a_wrong_one_less(name: str, toys: Mapping[str, ToyFiles]):
    task = TASKS[task_of(name)]
    for record in records(toys[name]):
        assert record.task == task.name
        right = ideal_completion(record)
        for reward in task.rewards:
            value = score(reward, right, record=record)
            assert value is not None and FULL.get(name, {}).get(reward, 1.0) <= value <= 1.0
        wrong = ideal_completion(Record(record.id, record.question, WRONG[name], task=task.name))
        assert score("format", wrong, record=record) == 1.0
        for reward in set(task.rewards) - {"format"}:
            assert score(reward, wrong, record=record) < 0.1
        assert score("format", f"{right} and so on", record=record) == 0.0


@pytest.mark.parametrize("name", ["video", "math"])
def test_what_was_trained_on_is_evaluated(name: str, tiny_model: Path, toys: Mapping[str, ToyFiles], tmp_path: Path):
    files = toys[name]._replace(train=toys[name].held_out)
    options = {"task_type": task_of(name), "output_dir": tmp_path / "out", "max_completion_length": 4}
    assert evaluate([*words(tiny_model, files, **options), "--use_cpu"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (results["task"], results["examples"]) == (task_of(name), ROWS // 5)
    assert results["metrics"][TASKS[task_of(name)].metric]["count"] == ROWS // 5


def test_several_tasks_train_in_one_run(tiny_model: Path, toys: Mapping[str, ToyFiles], tmp_path: Path):
    """The rows name their tasks; a reward that does not apply to a row is left out there."""
    both = toys["rec"]._replace(
        train=f"{toys['rec'].train}:{toys['math'].train}", images=f"{toys['rec'].images}:{toys['math'].images}"
    )
    command = training_words(
        tiny_model, both, tmp_path / "out", "rec", per_device_train_batch_size=8, max_steps=1, save_steps=1
    )
    assert train([*command, "--reward_funcs", "iou", "accuracy", "format"]) == 0
    history = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert {"rewards/iou/mean", "rewards/accuracy/mean"} <= set(history[0])


def test_an_own_prompt_replaces_the_tasks(
    tiny_model: Path, toys: Mapping[str, ToyFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = tmp_path / "own.jinja"
    own.write_text("Look closely. {{ question }}{% if options %} [{{ options | join('/') }}]{% endif %}\n")
    command = training_words(tiny_model, toys["vqa"], tmp_path / "out", "vqa", format_prompt=own)
    assert train([*command, "--dry_run"]) == 0
    shown = re.findall(r"^\[user\] (.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(shown) == 2 and all(text.startswith("Look closely. <image>") for text in shown)
    assert train(command) == 0
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    files = toys["vqa"]._replace(train=toys["vqa"].held_out)
    options = {"task_type": "vqa", "output_dir": tmp_path / "eval", "max_completion_length": 4, "format_prompt": own}
    assert evaluate([*words(tiny_model, files, **options), "--use_cpu", "--limit", "1"]) == 0


def test_every_task_has_a_prompt_a_toy_set_and_a_script():
    scripts = {path.name for path in (Path(__file__).resolve().parents[2] / "run_scripts").glob("*.sh")}
    lines = {line.split()[0]: line for line in task_lines() if line}
    for name, task in TASKS.items():
        assert task.prompt in PROMPTS and name in TOYS
        assert f"run_grpo_{name}.sh" in scripts
        assert task.metric in lines[name] and task.answer in lines[name]
