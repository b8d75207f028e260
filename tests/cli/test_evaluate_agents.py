from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import environments
from tests.support.agents import pick_by_name, speak
from tests.support.environments import call
from vlm_grpo.cli import evaluate
from vlm_grpo.cli.evaluate import main

GALLERY = f"{environments.__file__}:Gallery"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with red, green and blue things."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (64, 56), name).save(folder / f"{name}_1.png")
    return folder


@pytest.fixture
def question(tmp_path: Path) -> list[str]:
    """The flags of a row of data."""
    Image.new("RGB", (56, 56), "gray").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "two words"}]
    line = json.dumps({"image": "a.png", "conversations": turns, "source": "here"})
    (tmp_path / "rows.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    return ["--data_file_paths", str(tmp_path / "rows.jsonl"), "--image_folders", str(tmp_path)]


def words(model: Path, output: Path, *more: str) -> list[str]:
    flags = ["--model_name_or_path", str(model), "--output_dir", str(output), "--use_cpu"]
    return [*flags, "--max_completion_length", "400", *more]


def picking(model: Path, output: Path, pictures: Path, *more: str) -> list[str]:
    flags = ["--environment", "pick_image", "--data_root", str(pictures), "--fixed_correct_index", "1"]
    return words(model, output, *flags, "--candidates_per_episode", "3", *more)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def predictions_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def page_of(folder: Path) -> list[dict]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's model is a Speaker that picks by name."""
    monkeypatch.setattr(evaluate, "load_model", evaluate.load_model)
    speak(pick_by_name)


@pytest.mark.usefixtures("spoken")
def test_episodes_without_data_are_played_and_reported(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    assert main(picking(tiny_model, out, pictures, "--limit", "12", "--seed", "3")) == 0
    found = predictions_of(out)
    asked = [re.search(r"shows: (\w+)", entry["question"])[1] for entry in found]
    assert set(asked) == {"red", "green", "blue"}
    for name, entry in zip(asked, found, strict=True):
        turns, calls, failed, reward = {"red": (1, 1, 0, 1.0), "green": (2, 2, 1, 0.2), "blue": (1, 0, 0, 0.0)}[name]
        numbers = {"turns": turns, "calls": calls, "failed_calls": failed, "reward": reward}
        assert {key: entry["episode"][key] for key in numbers} == numbers
    results = results_of(out)
    assert results["metrics"]["success"]["value"] == asked.count("red") / 12
    assert results["metrics"]["failed_calls"]["count"] == results["rows"] == 12
    assert (
        results["metrics"]["turns"]["low"] < results["metrics"]["turns"]["value"] < results["metrics"]["turns"]["high"]
    )
    assert not list(out.glob("*partial*"))
    assert re.search(r"success .* 12\n", capsys.readouterr().out)
    entry = page_of(out)[asked.index("green")]
    assert [step["r"] for step in entry["a"][0]["p"]] == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert [step.get("c") for step in entry["a"][0]["p"]][3::2] == ["point_at(index=1)", "pick_image(index=2)"]
    assert [block for block in entry["a"][0]["p"][1]["b"] if isinstance(block, list)] == [[0, 0], [0, 1], [0, 2]]
    assert len(entry["i"]) == 3 and entry["i"][0][0].startswith("data:image/png")
    assert (entry["a"][0]["t"], entry["a"][0]["r"], entry["s"]) == ("pick_image(index=2)", False, 0.2)


def test_rows_are_played_with_the_flags_of_episodes(
    tiny_model: Path, question: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate, "load_model", evaluate.load_model)
    speak(lambda prompt, turn: f"<look>{['red', 'blue', 'green'][turn]}</look>")
    tagged = "from tests.support.environments import Gallery\nclass Tagged(Gallery):\n    TAGS = {'look': 'look'}\n"
    (tmp_path / "tagged.py").write_text(tagged, encoding="utf-8")
    flags = [
        "--environment",
        f"{tmp_path / 'tagged.py'}:Tagged",
        "--environment_options",
        '{"limit": 3}',
        "--tool_format",
        "tags",
    ]
    out = tmp_path / "out"
    assert main(words(tiny_model, out, *question, *flags, "--group_by", "source")) == 0
    assert [entry["episode"]["shown"] for entry in predictions_of(out)] == [3.0, 3.0]  # over at its limit
    assert sorted(path.name for path in (out / "images").iterdir()) == [
        f"{row}-0-{place}.png" for row in (0, 1) for place in range(3)
    ]
    entry = page_of(out)[0]
    assert [len(entry[key]) for key in "ij"] == [1, 3] and entry["a"][0]["p"][3]["b"] == ["red: ", [1, 0]]
    assert results_of(out)["groups"]["here"]["turns"]["value"] == 3.0
    assert main(words(tiny_model, out, *question, *flags, "--max_turns", "2", "--limit", "1", "--overwrite")) == 0
    assert predictions_of(out)[0]["episode"]["turns"] == 2
    assert sorted(path.name for path in (out / "images").iterdir()) == ["0-0-0.png", "0-0-1.png"]  # none of before
    slow = ["--tool_time_limit", "0.1", "--environment", GALLERY]
    speak(lambda prompt, turn: call("wait", seconds=1))
    assert main(words(tiny_model, tmp_path / "slow", *question, *slow, "--limit", "1")) == 0
    assert predictions_of(tmp_path / "slow")[0]["episode"]["failed_calls"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_turns", "3", "--data_file_paths", "a"], "--max_turns has no effect without --environment"),
        (["--data_root", "x", "--data_file_paths", "a"], "--data_root has no effect without --environment"),
        (["--environment", "pick_image", "--prompt_key", "q"], "--prompt_key has no effect without data"),
        (["--environment", "pick_image", "--task_type", "vqa"], "--task_type has no effect without data"),
        (["--environment", "visual_crop", "--tool_time_limit", "0"], "--tool_time_limit must be above 0, got 0"),
        (
            ["--environment", "pick_image", "--backend", "openai", "--base_url", "u"],
            "--environment continues exact tokens, which --backend openai cannot: use local, vllm or sglang",
        ),
    ],
)
def test_flags_without_effect_are_refused(more: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main(["--model_name_or_path", "m", "--output_dir", "o", *more])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--environment pick_image has an unlimited number of episodes: set --limit"),
        (["--limit", "3", "--data_root", "gone"], "--data_root gone: no such folder"),
        (["--environment_options", '{"sise": 3}'], "--environment pick_image has no option 'sise'"),
        (["--environment", "visual_crop"], "--environment visual_crop needs data: set --data_file_paths"),
        (["--environment", "pick_imag"], "pick_imag"),
        (["--data_file_paths", "a.jsonl"], "--environment pick_image generates its episodes itself: remove the data"),
    ],
)
def test_environments_that_do_not_fit_are_refused_before_anything_is_loaded(
    more: list[str], message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    root = [] if "visual_crop" in more else ["--data_root", str(pictures), "--candidates_per_episode", "2"]
    flags = ["--environment", "pick_image", *root, *more]
    assert main(["--model_name_or_path", "m", "--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_template_without_tools_is_named(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(picking(tiny_model, tmp_path / "out", pictures, "--limit", "1", "--tool_format", "native")) == 2
    assert "--tool_format native: this model's chat template does not support tools" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.usefixtures("spoken")
def test_one_process_goes_on_where_two_were_stopped(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The second process dies; one goes on, with settings given that are the defaults, and another batch size."""
    flags = ["--limit", "9", "--batch_size", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "tests.support.agents", "2", *picking(tiny_model, tmp_path / "two", pictures, *flags)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode != 0
    assert not (tmp_path / "two" / "results.json").exists()
    assert main(picking(tiny_model, tmp_path / "two", pictures, *flags, "--max_turns", "4")) == 2
    assert "'max_turns': 8" in (said := capsys.readouterr().err) and "'max_turns': 4" in said
    again = [*flags[:2], "--batch_size", "4", "--max_turns", "8"]
    assert main(picking(tiny_model, tmp_path / "two", pictures, *again)) == 0
    assert re.search("resuming: [2-8] of 9 rows", capsys.readouterr().out)
    assert main(picking(tiny_model, tmp_path / "one", pictures, *flags)) == 0
    assert predictions_of(tmp_path / "two") == predictions_of(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_find_what_one_finds(
    tiny_model: Path, question: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the tiny model itself, whose drawn turns depend on the row alone."""
    flags = [*question, "--environment", "visual_crop", "--temperature", "1", "--num_samples", "3"]
    assert main(words(tiny_model, tmp_path / "one", *flags)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "vlm_grpo.cli.evaluate", *words(tiny_model, tmp_path / "two", *flags)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert predictions_of(tmp_path / "two") == predictions_of(tmp_path / "one")
