"""The flags of environments: each test fails when its flag is ignored."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import png, turns, write_jsonl
from tests.support.environments import call
from vlm_grpo.cli import train
from vlm_grpo.cli.env_args import environment_factory
from vlm_grpo.cli.train_args import UsageError, parse
from vlm_grpo.envs.tool_parser import HermesToolParser, TagToolParser
from vlm_grpo.synthetic.candidates import write_candidates

QUICK = (
    *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "1"),
    *("--per_device_train_batch_size", "4", "--num_generations", "4", "--live_report", "false"),
)
OWN = "tests/support/environments.py:Gallery"


@pytest.fixture
def candidates(tmp_path: Path) -> str:
    write_candidates(tmp_path / "toy")
    return str(tmp_path / "toy")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Flags of two rows with a picture; each names an environment."""
    (tmp_path / "0.png").write_bytes(png())
    rows = [
        {"id": n, "image": "0.png", "conversations": turns("<image>q", str(n)), "environment": name}
        for n, name in enumerate((OWN, "visual_crop"))
    ]
    return ["--data_file_paths", write_jsonl(tmp_path / "a.jsonl", rows), "--image_folders", str(tmp_path)]


def built(tiny_model: Path, tmp_path: Path, *words: str) -> Any:
    """The trainer of a command line."""
    script, training, model = parse(
        [*words, *QUICK, "--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out")]
    )
    train.check_environments(script, bool(script.data_file_paths))
    return train.build_trainer(script, training, model, *train.load_data(script, training))


def environment_of(trainer: Any) -> Any:
    return trainer.env_pool.idle[None][0]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_an_agent_is_trained_by_the_command(kind: str, candidates: str, tiny_model: Path, tmp_path: Path):
    words = [
        "--trainer",
        kind,
        "--environment",
        "pick_image",
        "--data_root",
        candidates,
        "--max_completion_length",
        "8",
    ]
    status = train.main(
        [*words, *QUICK, "--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out")]
    )
    assert status == 0
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["episodes/turns"] == 1.0
    assert "rewards/PickImage/mean" in log[0]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["script"]["environment"] == ["pick_image"]


def test_flags_of_pick_image(candidates: str, tiny_model: Path, tmp_path: Path):
    words = ("--data_root", candidates, "--candidates_per_episode", "6", "--fixed_correct_index", "5")
    trainer = built(tiny_model, tmp_path, "--environment", "pick_image", *words, "--seed", "9")
    environment = environment_of(trainer)
    assert (environment.candidates, environment.fixed, len(environment.by_name)) == (6, 5, 8)
    assert {row["seed"] for row in islice(trainer.train_dataset, 3)} == {9}


def test_environment_options(data: list[str], tiny_model: Path, tmp_path: Path):
    trainer = built(tiny_model, tmp_path, "--environment", OWN, *data, "--environment_options", '{"limit": 2}')
    assert environment_of(trainer).limit == 2
    both = ("--environment", OWN, "visual_crop")
    options = json.dumps({"visual_crop": {"max_crops": 7}})
    trainer = built(tiny_model, tmp_path, *both, *data, "--environment_options", options)
    assert trainer.env_pool.idle["visual_crop"][0].max_crops == 7
    assert trainer.env_pool.idle[OWN][0].limit == 9


def test_rows_choose_among_several(data: list[str], tiny_model: Path, tmp_path: Path):
    trainer = built(tiny_model, tmp_path, "--environment", OWN, "visual_crop", *data)
    episodes, _ = trainer.env_pool.start(list(trainer.train_dataset))
    assert [type(episode.environment).__name__ for episode in episodes] == ["Gallery", "VisualCrop"]


def test_turns_time_and_protocol(data: list[str], tiny_model: Path, tmp_path: Path):
    words = ("--max_turns", "3", "--tool_time_limit", "1.5", "--tool_format", "tags")
    trainer = built(tiny_model, tmp_path, "--environment", "visual_crop", *data, *words)
    assert (trainer.args.max_turns, trainer.args.tool_time_limit) == (
        3,
        1.5,
    )  # effects: test_multi_turn.py
    assert isinstance(trainer.env_pool.tool_parsers[None], TagToolParser)
    trainer = built(tiny_model, tmp_path, "--environment", "visual_crop", *data)
    assert isinstance(trainer.env_pool.tool_parsers[None], HermesToolParser)


def test_rewards_go_beside_the_environment(data: list[str], tiny_model: Path, tmp_path: Path):
    trainer = built(tiny_model, tmp_path, "--environment", "visual_crop", *data, "--reward_funcs", "format:0.5")
    assert trainer.reward_func_names == ["format", "VisualCrop"]
    assert trainer.reward_weights.tolist() == [0.5, 1.0]
    assert built(tiny_model, tmp_path, "--environment", "visual_crop", *data).reward_func_names == ["VisualCrop"]


def test_dry_run_shows_episodes(candidates: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--environment", "pick_image", "--data_root", candidates, "--dry_run", "true"]
    assert train.main([*words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Which image shows:" in shown
    assert "<tools>" in shown
    assert f"images: ['{candidates}/" in shown
    assert "rows: streamed" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--environment", "pick_imag"], "did you mean 'pick_image'"),
        (["--environment", "pick_image", "--data_root", "nowhere"], "no such folder"),
        (["--environment", "visual_crop"], "--environment visual_crop needs data: set --data_file_paths"),
        (["--environment", OWN, "--data_root", "."], "has no option 'data_root'; it has limit"),
        (["--environment", OWN, "--environment_options", "[1]"], "must be a JSON object"),
        (["--environment", OWN, "visual_crop", "--environment_options", '{"crop": {}}'], "unknown environment 'crop'"),
        (["--environment", OWN, "visual_crop", "--data_root", "."], "--data_root has no effect"),
        (["--environment", "nowhere.py:Mine"], "no such file"),
    ],
)
def test_wrong_environments_are_refused(words: list[str], message: str, tmp_path: Path):
    script, _, _ = parse([*words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])
    with pytest.raises(UsageError, match=message):
        train.check_environments(script, False)


def test_pick_image_takes_no_data(candidates: str, data: list[str], tmp_path: Path):
    words = ["--environment", "pick_image", "--data_root", candidates, *data]
    script, _, _ = parse([*words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])
    with pytest.raises(UsageError, match="generates its episodes itself: remove the data"):
        train.check_environments(script, True)
    assert environment_factory(script)().candidates == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_turns", "3"], "--max_turns has no effect without --environment"),
        (["--tool_time_limit", "3"], "--tool_time_limit has no effect without --environment"),
        (["--tool_format", "tags"], "--tool_format has no effect without --environment"),
        (["--data_root", "."], "--data_root has no effect without --environment"),
        (["--environment_options", "{}"], "--environment_options has no effect without --environment"),
        (["--environment", OWN, "--val_split_ratio", "0.1"], "use `vlm-grpo evaluate --environment`"),
        (["--environment", OWN, "--max_prompt_length", "10"], "cannot measure prompts of --environment"),
        (["--environment", OWN, "--max_steps", "-1"], "needs --max_steps"),
        (["--environment", OWN, "--max_tool_calling_iterations", "1"], "--max_turns limits the turns"),
    ],
)
def test_flags_without_effect_are_refused(words: list[str], message: str, data: list[str], tmp_path: Path):
    given = data if "--environment" not in words else []
    with pytest.raises(UsageError, match=message):
        parse([*given, *QUICK, *words, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])


def test_the_environments_are_listed(capsys: pytest.CaptureFixture):
    from vlm_grpo.cli.main import main
    from vlm_grpo.envs import ENVIRONMENTS

    assert main(["environments"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ENVIRONMENTS)
    assert '"candidates_per_episode": 4' in listed
    assert call("pick_image", index=1).startswith("<tool_call>")
