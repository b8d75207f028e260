"""`--report_to`: what TensorBoard, W&B (offline) and trackio (local) get of a training on mixed rows."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl.trainer.utils import strip_images_from_messages

from tests.support.training import picture
from vlm_grpo.rollouts.logged_rollout import plain_messages

LAUNCH = Path(__file__).resolve().parents[2] / "src" / "vlm_grpo" / "grpo_jsonl.py"
CURVES = ("reward", "rewards/varied/mean", "rewards/format/mean", "completions/mean_length", "entropy", "grad_norm")
OTHERS = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name)]


class Done(NamedTuple):
    """A training: its folder and the log that TRL keeps itself."""

    folder: Path
    steps: list[dict[str, Any]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Done:
    """Two steps on rows with two images, one image and none, reported to all that is installed."""
    folder = tmp_path_factory.mktemp("report_to")
    with (folder / "a.jsonl").open("w") as file:
        for number, images in enumerate((["0.png", "1.png"], [], ["2.png"], ["0.png"])):
            picture(number).save(folder / f"{number}.png")
            turns = [{"from": "human", "value": "<image>" * len(images) + "Which?"}, {"from": "gpt", "value": "3"}]
            file.write(json.dumps({"id": number, "image": images, "conversations": turns}) + "\n")
    (folder / "mine.py").write_text("def varied(completion, record): return len(completion) % 7 / 7\n")
    words = [
        *("--reward_funcs", f"{folder}/mine.py:varied", "format"),
        *("--model_name_or_path", str(tiny_model), "--output_dir", str(folder / "out"), "--max_steps", "2"),
        *("--data_file_paths", str(folder / "a.jsonl"), "--image_folders", str(folder), "--use_cpu", "true"),
        *("--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "4"),
        *("--bf16", "false", "--gradient_checkpointing", "false", "--logging_steps", "1", "--save_strategy", "no"),
        *("--report_to", "tensorboard", *OTHERS, "--log_completions", "true", "--run_name", "tried"),
    ]
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **offline, "TRACKIO_DIR": str(folder / "trackio"), "TRACKIO_PROJECT": "project"}
    ran = subprocess.run(
        [sys.executable, str(LAUNCH), *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return Done(folder, [entry for entry in history if "reward" in entry])


def test_tensorboard_has_the_curves(done: Done):
    (folder,) = (done.folder / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    for name in CURVES:
        points = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert points == [(step, pytest.approx(entry[name], rel=1e-5)) for step, entry in enumerate(done.steps, 1)]


def test_wandb_has_the_table_of_completions(done: Done):
    pytest.importorskip("wandb")
    files = done.folder / "wandb" / "latest-run" / "files"
    tables = [json.loads(path.read_text()) for path in (files / "media" / "table").glob("completions_*.table.json")]
    rows = [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]
    assert {row["step"] for row in rows} == {1, 2} and {"varied", "format", "advantage"} <= set(rows[0])
    shown = {(row["prompt"][-1]["content"].split("Which?")[0], len(row["image"])) for row in rows}
    assert shown == {("[image][image]", 2), ("", 0), ("[image]", 1)}


@pytest.mark.parametrize("is_ours", [False, True], ids=["stock", "ours"])
def test_wandb_takes_prompts_of_text_alone(is_ours: bool):
    """TRL leaves out pixels but keeps the blocks; two prompts with one image each are enough."""
    wandb = pytest.importorskip("wandb")
    blocks = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "Which?"}]
    prompts = [strip_images_from_messages([{"role": "user", "content": blocks}])] * 2
    if not is_ours:
        with pytest.raises(TypeError, match="incompatible types"):
            wandb.Table(dataframe=pandas.DataFrame({"prompt": prompts}))
        return
    table = wandb.Table(dataframe=pandas.DataFrame({"prompt": [plain_messages(prompt) for prompt in prompts]}))
    assert table.data == [[[{"role": "user", "content": "[image] Which?"}]]] * 2


def test_trackio_has_curves_and_images(done: Done):
    pytest.importorskip("trackio")
    (database,) = (done.folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        lines = [json.loads(line) for (line,) in connection.execute("select metrics from metrics order by step, id")]
    assert [line["train/reward"] for line in lines if "train/reward" in line] == pytest.approx(
        [entry["reward"] for entry in done.steps], rel=1e-5
    )
    assert any("completions" in line for line in lines)
    images = list((done.folder / "trackio" / "media").rglob("*.png"))
    assert len(images) >= 16  # four completions each of prompts with 2, 0, 1 and 1 images
