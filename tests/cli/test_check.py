from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.files import turns, write_images, write_jsonl
from vlm_grpo.cli.check import main
from vlm_grpo.cli.preview import main as preview

GOOD = {"image": "0.png", "conversations": turns("<image>q", "a")}


def flags(folder: Path, rows: list) -> list[str]:
    path = write_jsonl(folder / "a.jsonl", rows)
    return ["--data_file_paths", path, "--image_folders", str(write_images(folder))]


def test_good_data_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(flags(tmp_path, [GOOD])) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "no problems"
    assert (
        said[1].startswith("the reward accuracy of 1 rows is auto: By the type of the gold answer") and len(said) == 2
    )


@pytest.mark.parametrize(
    ("task", "said"),
    [("rec", "iou (task rec): The IoU of the answer's only box"), ("gui", "all_match (task gui): The same items")],
)
def test_what_accuracy_is_for_a_task_is_said(task: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {**GOOD, "conversations": turns("<image>q", [1, 2, 5, 6])}
    words = flags(tmp_path, [row, {**row, "accu_reward_method": "default"}, {**row, "accu_reward_method": "exact"}])
    assert main([*words, "--task_type", task]) == 0
    out = capsys.readouterr().out
    assert f"accuracy of 2 rows is {said}" in out
    assert "accuracy of 1 rows is exact: Equal, ignoring surrounding whitespace" in out
    assert preview([*words, "--task_type", task, "--reward_funcs", "accuracy"]) == 0
    assert f"accuracy is {said}" in capsys.readouterr().out


def test_every_problem_is_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(flags(tmp_path, ["{", GOOD, {**GOOD, "image": "9.png"}, *[{**GOOD, "id": []}] * 60])) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["line", "field", "found", "expected"]
    assert len(lines) == 2 + 62 + 1 + 1 + 3
    assert lines[3].startswith(f"{tmp_path}/a.jsonl:3 ") and lines[3].endswith("an image that can be decoded")
    assert lines[-4] == "62 problems and 0 warnings at 62 places"


def test_a_warning_is_shown_and_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(flags(tmp_path, [{**GOOD, "conversations": turns("q", "a")}])) == 0
    assert "0 problems and 1 warning" in capsys.readouterr().out


def test_flags_reach_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = flags(tmp_path, [{"ask": "q", "gold": "a", "pic": "../images/../../x.png"}])
    assert main([*words, "--prompt_key", "ask", "--answer_key", "gold", "--image_key", "pic"]) == 1
    assert "a path inside" in capsys.readouterr().out
    (tmp_path.parent / "x.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    assert main([*words, "--prompt_key", "ask", "--answer_key", "gold", "--image_key", "pic", "--allow_outside"]) == 0
    assert main([*words, "--reward_method", "exakt"]) == 1
    assert "method: expected exact" in capsys.readouterr().out
    assert main([*words, "--task_type", "zzz"]) == 1
    assert "unknown task 'zzz'" in capsys.readouterr().err


def test_flags_of_training_are_known_here_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {**GOOD, "task": "clevr_count"}
    words = flags(tmp_path, [row])
    assert main(words) == 1
    for command in (main, preview):
        assert command([*words, "--ignore_columns", "task", "--task_type", "gui_defect"]) == 0
    hub = ["--dataset_name", words[1], *words[2:], "--ignore_columns", "task"]
    for extra in (["--use_huggingface_dataset"], ["--use_huggingface_dataset", "true"]):
        assert main([*hub, *extra]) == 0
        with pytest.raises(SystemExit):
            main([*words, *extra])
        assert "--use_huggingface_dataset needs --dataset_name" in capsys.readouterr().err


def test_shares_are_checked_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = ["--image_folders", str(write_images(tmp_path))]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [GOOD] * size) for name, size in (("a", 2), ("b", 30))]
    words = ["--data_file_paths", ":".join(paths), *images]
    assert main([*words, "--mixture", "1:9"]) == 0
    for shares, said in (("1", "1 for 2 data files"), ("1:x", "'x'"), ("900:1", "none of its 30 rows would be used")):
        capsys.readouterr()
        assert main([*words, "--mixture", shares]) == 1
        assert said in capsys.readouterr().out
    (tmp_path / "a.jsonl").write_text("{\n")
    assert main([*words, "--mixture", "1:x"]) == 1
    out = capsys.readouterr().out
    assert "'x'" in out and "a.jsonl:1 " in out


def test_decode_finds_what_headers_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("vlm_grpo.data.validation.validate_image", lambda ref, decode: asked.append(decode))
    main(flags(tmp_path, [GOOD]))
    main([*flags(tmp_path, [GOOD]), "--decode"])
    assert asked == [False, True]


@pytest.mark.parametrize("words", [[], ["--data_file_paths", "a", "--dataset_name", "b"], ["--data_paths", "a"]])
def test_a_wrong_command_line_exits_with_two(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "error:" in capsys.readouterr().err


def test_check_runs_without_torch_and_without_a_traceback(tmp_path: Path):
    words = flags(tmp_path, ["{", GOOD])
    code = "import sys; from vlm_grpo.cli.main import main; status = main(sys.argv[1:]);"
    code += "assert not {'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules); sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, "check", *words], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "a.jsonl:1" in done.stdout and done.stderr == ""


def test_a_reward_of_the_task_that_applies_to_no_row_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_jsonl(tmp_path / "v.jsonl", [{"question": "q", "answer": "a"}, {"question": "q", "answer": "b"}])
    assert main(["--data_file_paths", path, "--task_type", "vqa"]) == 0
    said = capsys.readouterr().out
    assert (
        "the reward reasoning of the task vqa applies to none of its rows: it needs the column reference_steps" in said
    )
    assert main(["--data_file_paths", path]) == 0
    assert "applies to none" not in capsys.readouterr().out
