"""DEBUG_MODE and LOG_PATH: a line for each completion and reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import turns, write_images, write_jsonl
from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.data import load_dataset
from vlm_grpo.trainers.completion_log import DebugLog, debug_log
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer


@pytest.mark.parametrize(
    "kind", [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)], ids=["grpo", "rloo"]
)
def test_training_writes_a_line_per_completion_and_reward(kind: tuple, tiny_model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "logs" / "debug.txt"))
    row = {"id": "one", "image": "0.png", "conversations": turns("<image>q", "a")}
    other = {"id": "two", "conversations": turns("q", "b"), "task": "counting"}
    folder = str(write_images(tmp_path))
    rows = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row, other]), image_folders=folder)
    args = kind[1](**settings(tmp_path, per_device_train_batch_size=8, max_steps=2))
    kind[0](str(tiny_model), ["accuracy", "format"], args, train_dataset=rows).train()
    names = [f"debug_{reward}_{task}.txt" for reward in ("accuracy", "format") for task in ("counting", "default")]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == names
    lines = [json.loads(line) for line in (tmp_path / "logs" / "debug_accuracy_default.txt").open()]
    assert [line["step"] for line in lines] == [0] * 4 + [1] * 4
    assert {(line["id"], line["rank"], line["reward"], line["truth"]) for line in lines} == {
        ("one", 0, "accuracy", "a")
    }
    assert lines[0]["images"] == [f"{folder}/0.png"]
    assert {"completion", "answer", "where"} <= set(lines[0])
    assert lines[0]["value"] in (0.0, 1.0)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_table_of_completions_shows_the_advantages_that_are_used(kind: str, tiny_model: Path, tmp_path: Path):
    trainer, config = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}[kind]
    args = config(**settings(tmp_path, per_device_train_batch_size=8, max_steps=1, log_completions=True))
    made = trainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
    used = []
    compute = made._compute_loss

    def watched(model: Any, inputs: dict) -> Any:
        used.extend(inputs["advantages"].tolist())
        return compute(model, inputs)

    made._compute_loss = watched
    made.train()
    assert sorted(made._logs["advantages"]) == pytest.approx(sorted(used))
    assert len(set(used)) > 2


def test_values_that_do_not_apply_are_null_and_ranks_have_their_own_file(tmp_path: Path):
    log = DebugLog(str(tmp_path / "d.log"), rank=3)
    row = {"id": 1, "answer": "7", "task": "vqa", "images": [b"x"]}
    log.write(5, [row], ['{"reasoning_steps": [], "answer": "8"}'], {"iou": [float("nan")]})
    (line,) = [json.loads(text) for text in (tmp_path / "d_iou_vqa_rank3.log").open()]
    assert (line["value"], line["answer"], line["rank"], line["images"]) == (None, "8", 3, ["bytes"])


def test_environment_decides(tmp_path: Path):
    assert debug_log({}, 0) is None
    assert debug_log({"DEBUG_MODE": "false", "LOG_PATH": "x"}, 0) is None
    with pytest.raises(ValueError, match="DEBUG_MODE=true needs LOG_PATH"):
        debug_log({"DEBUG_MODE": "true"}, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="the folder cannot be created"):
        debug_log({"DEBUG_MODE": "true", "LOG_PATH": str(tmp_path / "file" / "d.txt")}, 0)
