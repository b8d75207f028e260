"""Every shipped script and configuration parses with the real parsers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = sorted((ROOT / "run_scripts").glob("run_*.sh"))
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
