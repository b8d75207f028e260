"""Every shipped script and configuration parses with the real parsers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PICK = ROOT / "run_scripts" / "run_rloo_pick_image.sh"
LAUNCHERS = sorted(set((ROOT / "run_scripts").glob("run_*.sh")) - {PICK})
DEEPSPEED = sorted((ROOT / "configs" / "deepspeed").glob("*.json"))
ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def training_flags(script: Path) -> list[str]:
    """The words after grpo_jsonl.py, with the script's own variables filled in."""
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    variables = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, flags=re.MULTILINE))
    command = text.split("grpo_jsonl.py", 1)[1]
    filled = re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], command)
    return shlex.split(filled, comments=True)


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_launch_script_parses(script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from vlm_grpo.cli.parsing import parse
    from vlm_grpo.cli.train import reward_specs

    monkeypatch.chdir(ROOT)
    words = training_flags(script)
    if "--deepspeed" in words:  # the file is checked below; an accelerator for it is not at hand everywhere
        at = words.index("--deepspeed")
        assert (ROOT / words[at + 1]).is_file()
        del words[at : at + 2]
    words[words.index("--bf16") + 1] = "false"
    words[words.index("--output_dir") + 1] = str(tmp_path)
    arguments, training, model = parse([*words, "--use_cpu", "true"])
    assert model.model_name_or_path.startswith("Qwen/")
    assert reward_specs(arguments)
    assert training.max_completion_length == 512


def words_of_pick(folder: Path, *words: str) -> list[str]:
    """What the script of the picking agent hands to `accelerate`, which is one here that prints it."""
    launcher = folder / "accelerate"
    launcher.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    launcher.chmod(0o755)
    known = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", PICK, *words], env=known, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_picking_agent_takes_its_arguments(tmp_path: Path):
    from vlm_grpo.cli.parsing import parse
    from vlm_grpo.data.toy.candidates import write_candidates

    write_candidates(tmp_path / "toy")
    words = words_of_pick(
        tmp_path,
        *("--model_id", "Qwen/Qwen2.5-VL-32B-Instruct", "--data_root", str(tmp_path / "toy"), "--gpus", "3"),
        *("--candidates_per_episode", "5", "--fixed_correct_index", "2", "--num_rollouts", "6", "--train_steps", "7"),
        *("--per_device_batch_size", "12", "--use_lora", "true", "--output_dir", str(tmp_path / "out")),
        *("--", "--use_cpu", "true", "--bf16", "false", "--beta", "0.1"),
    )
    start = next(n for n, word in enumerate(words) if word.endswith("grpo_jsonl.py")) + 1
    assert words[:start] == ["launch", "--num_processes", "3", str(ROOT / "src/vlm_grpo/grpo_jsonl.py")]
    at = words.index("--deepspeed")
    assert Path(words[at + 1]).is_file()
    script, training, model = parse([*words[start:at], *words[at + 2 :]])
    assert (script.trainer, script.environment, script.data_root) == ("rloo", ["pick_image"], str(tmp_path / "toy"))
    assert (script.candidates_per_episode, script.fixed_correct_index) == (5, 2)
    assert (training.num_generations, training.max_steps, training.per_device_train_batch_size) == (6, 7, 12)
    assert (model.model_name_or_path, model.use_peft, training.beta) == ("Qwen/Qwen2.5-VL-32B-Instruct", True, 0.1)
    assert training.output_dir == str(tmp_path / "out")


@pytest.mark.parametrize("words", [("--steps", "3"), ("--train_steps",)])
def test_the_picking_agent_refuses_other_arguments(words: tuple, tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        words_of_pick(tmp_path, *words)
    assert caught.value.returncode == 2


@pytest.mark.parametrize("script", sorted((ROOT / "run_scripts").glob("*.sh")), ids=lambda path: path.name)
def test_script_is_valid_bash(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.name)
def test_deepspeed_config_parses(path: Path):
    code = (
        "import sys; from transformers.integrations.deepspeed import HfDeepSpeedConfig as C;"
        "print(C(sys.argv[1]).get_value('zero_optimization.stage'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    stage = json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]["stage"]
    assert done.stdout.split()[-1] == str(stage)


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.name)
def test_accelerate_config_parses(path: Path):
    """With accelerate's own reader, which refuses unknown keys, and its launcher's options, which it would ignore."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert (config.distributed_type, config.num_processes) == (kind, 8)
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert {*config.deepspeed_config, *config.fsdp_config} <= options.keys()
    assert f"configs/accelerate/{path.name}" in path.read_text(encoding="utf-8")  # how it is started
    if kind == "DEEPSPEED":
        settings = json.loads((ROOT / config.deepspeed_config["deepspeed_config_file"]).read_text(encoding="utf-8"))
        assert path.stem == f"zero{settings['zero_optimization']['stage']}"
    else:
        assert config.mixed_precision == "bf16"


def test_every_accelerate_config_is_there():
    assert [path.stem for path in ACCELERATE] == ["ddp", "fsdp2", "zero2", "zero3"]


def test_the_hooks_before_a_commit_use_the_tested_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repo["rev"] for repo in hooks if repo["repo"].endswith("/ruff-pre-commit"))
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "configs" / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert ruff == f"v{pinned}"
