"""A run that goes on from a checkpoint is compared with the one that wrote it, before the model is loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.test_train import flags
from vlm_grpo.cli.run_changes import compare_records
from vlm_grpo.cli.run_record import NAME, read_record, run_record, write_run_record
from vlm_grpo.cli.train import main
from vlm_grpo.cli.train_args import parse

OPTIONS = {
    "max_steps": 2,
    "save_steps": 1,
    "learning_rate": "1e-3",
    "use_peft": True,
    "lora_target_modules": "all-linear",
}
NO_MODEL = "no model is loaded"


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of data and, in `out`, of a run of two steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(flags(tiny_model, folder, **OPTIONS)) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of its output folder."""
    return Path(shutil.copytree(trained / "out", tmp_path / "out"))


def resumed(model: Path, trained: Path, run: Path, **options: object) -> list[str]:
    """The command that goes on with some other settings; the data are written again as they were."""
    settings = {**OPTIONS, "output_dir": run, "max_steps": 3, "resume_from_checkpoint": True}
    return flags(
        model, trained, **{name: value for name, value in {**settings, **options}.items() if value is not None}
    )


CANNOT = {
    "trainer": ({"trainer": "rloo"}, r"! --trainer +grpo +rloo +the rollout and the state"),
    "optim": ({"optim": "adafactor"}, r"! --optim +adamw_torch_fused +adafactor +the optimizer state"),
    "max_steps": ({"max_steps": 1}, r"! --max_steps +2 +1 +the checkpoint is already at step 2"),
    "lora_r": ({"lora_r": 4}, r"! --lora_r +16 +4 +the adapter is different"),
    "lora_alpha": ({"lora_alpha": 4}, r"! --lora_alpha +32 +4 +the adapter is different"),
    "whole": ({"use_peft": False, "lora_target_modules": None}, r"! --use_peft +true +false"),
    "frozen": ({"freeze_language_model": True}, r"! --freeze_language_model +false +true +other parameters"),
    "algorithm": ({"algorithm": "ppo"}, r"! --algorithm +null +ppo +only one of them has additional state"),
    "several": ({"seed": 1, "trainer": "rloo"}, r"(?s)! --trainer.*  --seed +42 +1\n"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_change_is_an_error(
    name: str, tiny_model: Path, trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr("vlm_grpo.cli.train.build_trainer", lambda *_: pytest.fail(NO_MODEL))
    options, said = CANNOT[name]
    before = (run / NAME).read_bytes()
    assert main(resumed(tiny_model, trained, run, **options)) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert f"--resume_from_checkpoint {run}/checkpoint-2: settings marked with ! must not change" in error
    assert f"--model_name_or_path {run}/checkpoint-2 and another --output_dir" in error
    assert (run / NAME).read_bytes() == before and not (run / "run_1.json").exists()


def test_another_base_model_is_an_error_and_a_moved_one_is_not(
    tiny_model: Path, trained: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr("vlm_grpo.cli.train.build_trainer", lambda *_: (_ for _ in ()).throw(KeyError(NO_MODEL)))
    moved = Path(shutil.copytree(tiny_model, tmp_path / "moved"))
    with pytest.raises(KeyError, match=NO_MODEL):
        main(resumed(moved, trained, run))
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert main(resumed(moved, trained, run)) == 2
    assert "! --model_name_or_path" in (error := capsys.readouterr().err) and "belongs to another model" in error


def test_data_are_compared_by_content(trained: Path, run: Path):
    """Other rows are an error; another text in the same file is a warning; files may move."""
    then = read_record(run / "checkpoint-2")
    path = str(trained / "a.jsonl")

    def found(**data: object) -> list[tuple]:
        now = {**then, "data": {**then["data"], **data}}
        return [(change.name, bool(change.reason)) for change in compare_records(then, now, 2)]

    digest = then["data"]["files"][path]
    assert then["data"]["rows"] == 4 and len(digest) == 32
    assert found() == []
    assert found(files={"moved.jsonl": digest}) == []
    assert found(files={path: "other"}) == [("content of a.jsonl", False)]
    assert found(files={"b.jsonl": "other"}) == [("data", True)]
    assert found(rows=5) == [("rows of data", True)], "another part of them is held out"
    assert found(files={path: "other"}, rows=3) == [("rows of data", False), ("content of a.jsonl", False)]
    assert found(files={"b.jsonl": "other"}, rows=3) == [("data", True), ("rows of data", True)]
    assert found(files={"org/name@train": None}) == [("data", True)]


def test_other_settings_are_shown_once_and_each_record_is_kept(
    tiny_model: Path, trained: Path, run: Path, tmp_path: Path, capsys
):
    (tmp_path / "mine.py").write_text("def half(completion, record):\n    return 0.5\n")
    words = resumed(tiny_model, trained, run, seed=1, per_device_train_batch_size=8, num_generations=4)
    rewards = ["--reward_funcs", "format:2", f"{tmp_path}/mine.py:half"]
    assert main([*words, *rewards]) == 0
    error = capsys.readouterr().err
    assert f"vlm-grpo train: resuming from {run}/checkpoint-2 with changed settings" in error
    lines = [line.split() for line in error.splitlines()]
    for row in (
        ["--seed", "42", "1"],
        ["--per_device_train_batch_size", "4", "8"],
        ["--max_steps", "2", "3"],
        ["reward", "accuracy", "1.0", "-"],
        ["reward", "format", "1.0", "2.0"],
    ):
        assert row in lines, row
    assert error.count("--seed") == 1
    first, second = (json.loads((run / name).read_text()) for name in ("run_1.json", NAME))
    assert first["training"]["seed"] == 42 and first["resumed_from"] is None
    assert second["training"]["seed"] == 1 and second["resumed_from"] == f"{run}/checkpoint-2"
    assert json.loads((run / "checkpoint-3" / NAME).read_text()) == second
    assert json.loads((run / "checkpoint-2" / NAME).read_text()) == first


def test_the_same_command_has_nothing_to_say(tiny_model: Path, trained: Path, run: Path, capsys):
    assert main(resumed(tiny_model, trained, run, max_steps=2)) == 0
    assert "other settings" not in capsys.readouterr().err


def test_a_mistake_in_a_checkpoint_is_a_line(tiny_model: Path, trained: Path, run: Path, capsys):
    """It was written elsewhere and has no record to compare with."""
    for path in run.rglob(NAME):
        path.unlink()
    assert main(resumed(tiny_model, trained, run, optim="adafactor")) == 2
    error = capsys.readouterr().err
    assert f"vlm-grpo train: --resume_from_checkpoint {run}/checkpoint-2: " in error
    assert "optimizer.pt is of another kind of optimizer" in error


def test_the_record_is_json_and_resolved(trained: Path):
    text = (trained / "out" / NAME).read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    assert '"None"' not in text and "<HUB_TOKEN>" not in text
    assert record["script"]["reward_funcs"] == ["accuracy:1", "format:1"]  # the task's
    assert record["training"]["chat_template_kwargs"] is None and record["training"]["report_to"] == []
    assert record["training"]["accelerator_config"]["even_batches"] is True
    assert record["command"][:2] == ["--data_file_paths", str(trained / "a.jsonl")]
    assert record["versions"]["trl"] and record["processes"] == 1


def test_secrets_are_left_out(tiny_model: Path, tmp_path: Path):
    url = ["--judge_base_url", "http://me:pass@127.0.0.1:1/v1?api_key=123", "--judge_model", "m"]
    words = [*flags(tiny_model, tmp_path, max_steps=1), *url, "--push_to_hub", "true", "--hub_token", "hf_" + "a" * 20]
    parsed = parse(words)
    record = run_record(*parsed, [], rewards=["accuracy"], command=words)
    text = json.dumps(record)
    assert not any(secret in text for secret in ("me:pass", "123", "hf_aaa"))
    assert "http://[hidden]@127.0.0.1:1/v1?api_key=[hidden]" in record["command"]
    assert record["training"]["hub_token"] == "[hidden]"


def test_records_are_numbered_from_the_first(tmp_path: Path):
    for number in range(3):
        write_run_record({"number": number}, tmp_path)
    names = {"run_1.json": 0, "run_2.json": 1, NAME: 2}
    assert {path.name: json.loads(path.read_text())["number"] for path in tmp_path.iterdir()} == names
