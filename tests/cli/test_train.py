"""The command line: launched for real, and every mistake answered before anything is loaded."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from vlm_grpo.cli.args import NEEDS, UNREAD, help_text, ineffective_flags, known_flags, trl_flags, unknown_flags
from vlm_grpo.cli.train import main
from vlm_grpo.cli.train_args import UsageError, parse

LAUNCH = Path(__file__).resolve().parents[2] / "src" / "vlm_grpo" / "grpo_jsonl.py"


def data(folder: Path) -> list[str]:
    with (folder / "a.jsonl").open("w") as file:
        for number in range(4):
            Image.new("RGB", (56, 56), (number * 60, 0, 0)).save(folder / f"{number}.png")
            turns = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": str(number)}]
            file.write(json.dumps({"id": number, "image": f"{number}.png", "conversations": turns}) + "\n")
    return ["--data_file_paths", str(folder / "a.jsonl"), "--image_folders", str(folder)]


def flags(model: Path, folder: Path, **options: object) -> list[str]:
    settings = {
        "model_name_or_path": model,
        "output_dir": folder / "out",
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        **options,
    }
    return [*data(folder), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def launch(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(LAUNCH), *words], capture_output=True, text=True)


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_trains_to_a_checkpoint_that_loads(trainer: str, tiny_model: Path, tmp_path: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    done = launch([*flags(tiny_model, tmp_path, trainer=trainer), "--reward_funcs", "accuracy", "format:0.5"])
    assert done.returncode == 0, done.stderr
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    AutoProcessor.from_pretrained(tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["script"]["reward_funcs"] == ["accuracy", "format:0.5"]
    assert run["versions"]["trl"]


def test_dry_run_shows_prompts_and_loads_no_model(tmp_path: Path):
    done = launch([*flags(tmp_path / "no_such_model", tmp_path), "--dry_run"])
    assert done.returncode == 0, done.stderr
    assert "[user] <image>Which?" in done.stdout and "reward_funcs: ['accuracy:1', 'format:1']" in done.stdout
    assert not (tmp_path / "out").exists()


def test_bad_data_stops_before_the_model(tmp_path: Path):
    words = flags(tmp_path / "no_such_model", tmp_path)
    (tmp_path / "2.png").unlink()
    done = launch(words)
    assert done.returncode == 2
    assert "a.jsonl:3" in done.stderr and "2.png" in done.stderr and "Traceback" not in done.stderr


def test_config_file_and_its_mistakes(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("max_pixles: 3\n")
    done = launch([*flags(tmp_path, tmp_path), "--config", str(tmp_path / "c.yaml")])
    assert done.returncode == 2 and "unknown flag --max_pixles; did you mean --max_pixels" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss_typ", "grpo"], "unknown flag --loss_typ; did you mean --loss_type"),
        (["--delta", "2"], None),
    ],
)
def test_unknown_flags(words: list[str], message: str | None):
    assert unknown_flags(words, "grpo") == [] if message is None else message in unknown_flags(words, "grpo")[0]


def test_a_flag_of_the_other_trainer_is_named():
    assert unknown_flags(["--loss_type", "grpo"], "rloo") == [
        "--loss_type is a flag of --trainer grpo, but this run uses --trainer rloo"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 8, "use_peft": False}, "--lora_r has no effect without --use_peft"),
        ({"val_freq": 1.0, "val_split_ratio": 0.0}, "--val_freq has no effect without --val_split_ratio"),
        ({"vllm_mode": "server", "use_vllm": False}, "--vllm_mode has no effect without --use_vllm"),
        ({"sapo_temperature_pos": 1.0, "loss_type": "dapo"}, "--sapo_temperature_pos has no effect without"),
        (
            {"vllm_server_port": 1, "use_vllm": True, "vllm_mode": "colocate"},
            "--vllm_server_port has no effect without",
        ),
        ({"num_completions_to_print": 2, "log_completions": False}, "--num_completions_to_print has no effect without"),
        ({"save_steps": 5, "save_strategy": "no"}, "--save_steps has no effect without --save_strategy steps"),
        ({"hub_model_id": "a/b", "push_to_hub": False}, "--hub_model_id has no effect without --push_to_hub"),
        ({"eval_strategy": "steps"}, "--eval_strategy has no effect without --val_split_ratio"),
        ({"eval_delay": 1, "eval_strategy": "no"}, "--eval_delay has no effect without --eval_strategy steps or epoch"),
        (
            {"max_tokens_per_forward": 99, "shared_prefix": "off"},
            "--max_tokens_per_forward has no effect without --shared_prefix auto or on",
        ),
        ({"num_generations_eval": 2}, "--num_generations_eval has no effect here: --val_split_ratio with --val_freq"),
        ({"max_steps": 5, "num_train_epochs": 1.0}, "--num_train_epochs has no effect with --max_steps"),
        ({"dataset_name": "a/b"}, "--dataset_name and --data_file_paths are mutually exclusive"),
    ],
)
def test_ineffective_flags(values: dict, message: str):
    problems = ineffective_flags(list(values), {"data_file_paths": "a.jsonl", **values})
    assert any(problem.startswith(message) for problem in problems)


def test_flags_that_act_are_no_problem():
    values = {"data_file_paths": "a.jsonl", "image_folders": "x", "use_peft": True, "lora_r": 8, "loss_type": "sapo"}
    assert ineffective_flags(list(values), values) == []


def test_every_named_flag_exists():
    known = known_flags("grpo") | known_flags("rloo")
    assert set(UNREAD) <= known
    for prefixes, needed, (name, _) in NEEDS:
        assert set(name.split("|")) <= known and needed
        assert all(any(flag.startswith(prefix) for flag in known) for prefix in prefixes)


def test_a_combination_that_trl_refuses_is_an_answer(tmp_path: Path):
    with pytest.raises(UsageError, match="generation_batch_size"):
        parse([*flags(tmp_path, tmp_path, generation_batch_size=4, steps_per_generation=2)])


def test_help_lists_every_flag_without_torch():
    code = "import sys; from vlm_grpo.cli.train import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    for name in (*trl_flags()["grpo"], *trl_flags()["rloo"], *trl_flags()["model"], "data_file_paths", "dry_run"):
        assert f"--{name} " in help_text()


def test_stored_flags_are_those_of_the_installed_trl():
    from docs.gen_trl_flags import collect

    assert collect() == trl_flags()


def test_a_model_that_does_not_exist_is_answered_in_a_line(tmp_path: Path):
    done = launch(flags(tmp_path / "no_such_model", tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no_such_model' cannot be read" in done.stderr


def test_resume_continues_the_newest_checkpoint(tiny_model: Path, tmp_path: Path):
    words = flags(tiny_model, tmp_path, max_steps=2, save_steps=1)
    done = launch([*words, "--resume_from_checkpoint", "true"])
    assert done.returncode == 0 and "no complete checkpoint" in done.stderr
    first = tmp_path / "out" / "checkpoint-1" / "trainer_state.json"
    written = first.stat().st_mtime_ns
    words[words.index("--max_steps") + 1] = "3"
    done = launch([*words, "--resume_from_checkpoint", "true"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    assert first.stat().st_mtime_ns == written  # its steps were not run again


@pytest.mark.parametrize("is_named", [True, False])
def test_resume_refuses_a_checkpoint_with_pickles_of_an_earlier_version(is_named: bool, tmp_path: Path):
    """Beginning anew in the same folder would write over it."""
    from types import SimpleNamespace

    from vlm_grpo.cli.train import resume_point

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    (folder / "rollout_0.pt").write_bytes(b"whatever")
    value = str(folder) if is_named else "true"
    with pytest.raises(UsageError, match=r"--resume_from_checkpoint.*rollout_0\.pt is a pickle of an earlier version"):
        resume_point(SimpleNamespace(resume_from_checkpoint=value, output_dir=str(tmp_path)))


def test_resume_refuses_a_folder_without_a_checkpoint(tmp_path: Path):
    from types import SimpleNamespace

    from vlm_grpo.cli.train import resume_point

    for value, expected in ((None, None), ("false", None), (False, None)):
        assert resume_point(SimpleNamespace(resume_from_checkpoint=value, output_dir=str(tmp_path))) is expected
    with pytest.raises(UsageError, match="not a complete checkpoint: no trainer_state"):
        resume_point(SimpleNamespace(resume_from_checkpoint=str(tmp_path), output_dir=str(tmp_path)))


def test_a_misspelt_reward_is_answered_before_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = flags(tmp_path / "no_such_model", tmp_path)
    (tmp_path / "2.png").unlink()
    assert main([*words, "--reward_funcs", "acuracy"]) == 2
    assert "unknown reward 'acuracy'; did you mean 'accuracy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "said"), [("raise SystemExit(0)", "SystemExit: 0"), ("return float('nan')", "finite")]
)
def test_a_reward_that_gives_no_number_ends_the_run_by_name(body: str, said: str, tiny_model: Path, tmp_path: Path):
    trial = "if completion.startswith('<think>The answer'): return 1.0"  # the right answer, before the model is loaded
    (tmp_path / "mine.py").write_text(f"def f(completion, record):\n    {trial}\n    {body}")
    with pytest.raises((RuntimeError, ValueError), match=rf"reward 'f' on record \d .*a\.jsonl:\d: .*{said}"):
        main([*flags(tiny_model, tmp_path), "--reward_funcs", f"{tmp_path}/mine.py:f"])
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(completion, record): return record.anwser", r"AttributeError: .*anwser'[\s\S]*\nat .*mine\.py:1"),
        ("\ndef f(completions, teacher, **columns): return [1.0]", "requires teacher, which is not in the data"),
        ("def f(reward_input: dict): return {'total': 1.0}", "the reward as 'overall' or 'score'"),
        ("def f(response, gt): return float('nan')", "must return a finite number"),
        ("async def f(completions, **columns): return [None, None]", "must return a list of 1 numbers"),
        ("def f(completion): return 1.0", r"must take \(completion, record\) as in this package"),
        ("from verl import tools", "No module named 'verl'; rewards of this package do not need verl"),
    ],
)
def test_an_own_reward_is_tried_before_the_model_is_loaded(
    code: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.py").write_text(code)
    words = flags(tmp_path / "no_such_model", tmp_path)
    assert main([*words, "--reward_funcs", "format", f"{tmp_path}/mine.py:f:0.5"]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_dry_run_says_what_an_own_reward_gives_the_right_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.py").write_text("def f(response, gt): return 0.5 * (gt == '0') * ('<answer>0' in response)")
    words = [*flags(tmp_path / "no_such_model", tmp_path), "--dry_run", "--reward_funcs"]
    assert main([*words, f"{tmp_path}/mine.py:f"]) == 0
    assert (
        f"user reward {tmp_path}/mine.py:f: 0.5 for the gold answer of {tmp_path}/a.jsonl:1" in capsys.readouterr().out
    )


def test_an_image_that_breaks_when_it_is_decoded_ends_the_run_in_a_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its header and its end are whole; `check` finds it with --decode alone."""
    words = [*flags(tiny_model, tmp_path, max_steps=4, save_steps=1), "--reward_funcs", "format"]
    content = (tmp_path / "3.png").read_bytes()
    start = content.index(b"IDAT")
    (size,) = struct.unpack(">I", content[start - 4 : start])
    chunk = b"IDAT" + b"\0" * size  # no data that can be unpacked, with the checksum that belongs to it
    broken = content[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[start + 8 + size :]
    (tmp_path / "3.png").write_bytes(broken)
    status = main(words)
    said = capsys.readouterr().err
    assert status == 2 and "a.jsonl:4: cannot decode" in said and "--resume_from_checkpoint true" in said


def test_a_reward_of_rllava_trains_and_its_parts_are_logged(tiny_model: Path, tmp_path: Path):
    """Whole rows reach it: the truth as text, the length in tokens."""
    (tmp_path / "mine.py").write_text(
        "def compute_score(reward_inputs: list) -> list:\n"
        "    assert {one['ground_truth'] for one in reward_inputs} <= set('0123')\n"
        "    lengths = [one['response_length'] for one in reward_inputs]\n"
        "    return [{'overall': n / 10 + place, 'length': n} for place, n in enumerate(lengths)]\n"
    )
    words = [*flags(tiny_model, tmp_path, logging_steps=1), "--reward_funcs", f"{tmp_path}/mine.py:compute_score"]
    assert main(words) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    entry = next(entry for entry in history if "reward" in entry)
    assert entry["compute_score/length"] == entry["completions/mean_length"] <= 4
    assert entry["reward"] == pytest.approx(1.5 + entry["compute_score/length"] / 10)


@pytest.mark.parametrize(
    ("flag", "value", "problem"),
    [
        ("router_aux_loss_coef", "0.5", "is not a Mixture-of-Experts model"),
        ("max_prompt_length", "3", "--max_prompt_length 3: every prompt is longer"),
    ],
)
def test_what_shows_when_the_model_is_there_ends_in_a_line(
    flag: str, value: str, problem: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*flags(tiny_model, tmp_path, **{flag: value}), "--reward_funcs", "format"]) == 2
    said = capsys.readouterr().err
    assert "vlm-grpo train: the model or the trainer cannot be created: " in said and problem in said


def test_a_share_that_holds_no_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*flags(tmp_path / "no_such_model", tmp_path, val_split_ratio=0.001), "--dry_run"]) == 2
    assert "leave rows in both splits, got 0.001 for 4 rows" in capsys.readouterr().err
