"""Flags that cannot work together, or not on this machine, are answered before data and model are read."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlm_grpo.cli import preflight
from vlm_grpo.cli.preflight import missing_requirements, validate_flags
from vlm_grpo.cli.train import main
from vlm_grpo.cli.train_args import UsageError, parse

QUICK = "--use_cpu true --bf16 false --report_to none --model_name_or_path no/such/model --data_file_paths none.jsonl"


def words(folder: Path, *flags: str) -> list[str]:
    return [*QUICK.split(), "--output_dir", str(folder), *flags]


def model(**flags: bool) -> SimpleNamespace:
    return SimpleNamespace(**{"load_in_4bit": False, "load_in_8bit": False, "use_peft": True, **flags})


def training(device: str = "cuda", kind: str = "MULTI_GPU", stage: int = 0, fsdp: bool = False) -> SimpleNamespace:
    plugin = SimpleNamespace(zero_stage=stage) if stage else None
    state = SimpleNamespace(distributed_type=kind)
    return SimpleNamespace(device=torch.device(device), deepspeed_plugin=plugin, distributed_state=state, fsdp=fsdp)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--report_to wandb", "--report_to wandb needs wandb, which is not installed: pip install wandb"),
        ("--report_to mlflow", "--report_to mlflow needs mlflow"),
        ("--use_vllm", r"--rollout_engine vllm needs vllm, which is not installed: pip install 'vlm_grpo\[vllm\]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_command(
    flags: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    there = preflight.is_installed
    monkeypatch.setattr(preflight, "is_installed", lambda name: name not in ("wandb", "mlflow", "vllm") and there(name))
    assert main(words(tmp_path, *flags.split())) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and "tensorboard needs" not in error


@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
def test_quantized_weights_need_an_adapter(flag: str, tmp_path: Path):
    with pytest.raises(UsageError, match=f"{flag} needs --use_peft"):
        parse(words(tmp_path, flag, "true"))
    assert parse(words(tmp_path, flag, "true", "--use_peft", "true"))[2].use_peft


def test_four_and_eight_bit_exclude_each_other(tmp_path: Path):
    with pytest.raises(UsageError, match="8 bit and 4 bit"):
        parse(words(tmp_path, "--load_in_4bit", "true", "--load_in_8bit", "true", "--use_peft", "true"))


def test_quantized_weights_are_not_sharded_by_zero3():
    assert "ZeRO-3" in validate_flags(model(load_in_4bit=True), training(stage=3))[0]
    assert validate_flags(model(load_in_4bit=True), training(stage=2)) == []
    assert "FSDP" in validate_flags(model(load_in_8bit=True), training(fsdp=True))[0]
    assert validate_flags(model(load_in_4bit=True), training(fsdp=True)) == []


def test_quantized_weights_need_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Neither the data nor the model exist: the machine is asked first."""
    assert main(words(tmp_path, "--load_in_4bit", "true", "--use_peft", "true")) == 2
    assert "--load_in_4bit needs a GPU" in capsys.readouterr().err


def test_quantized_weights_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    assert missing_requirements(model(load_in_4bit=True), training()) == [
        "--load_in_4bit needs bitsandbytes: pip install 'vlm_grpo[quantization]'"
    ]
    monkeypatch.setattr(preflight, "find_spec", lambda name: object())
    assert missing_requirements(model(load_in_4bit=True), training()) == []
    assert missing_requirements(model(), training("cpu")) == []


@pytest.mark.parametrize(("kind", "is_refused"), [("NO", True), ("MULTI_CPU", True), ("MULTI_GPU", False)])
def test_fsdp_needs_gpus(kind: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch):
    """Accelerate shards only where there are devices; on CPU processes it trains with DDP and does not say so."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert bool(missing_requirements(model(), training(kind=kind))) is is_refused
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert missing_requirements(model(), training(kind=kind)) == []
    assert bool(missing_requirements(model(), training(kind=kind, fsdp=True))) is is_refused


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flash_attention_4"])
def test_flash_attention_needs_its_package(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = model(attn_implementation=name)
    assert missing_requirements(model(attn_implementation="sdpa"), training()) == []
    monkeypatch.setattr(preflight, "find_spec", lambda module: None)
    (problem,) = missing_requirements(asked, training())
    assert f"--attn_implementation {name} needs the package flash_attn" in problem and "install" in problem
    monkeypatch.setattr(preflight, "find_spec", lambda module: object() if module == "kernels" else None)
    assert missing_requirements(asked, training()) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--attn_implementation", "flash_attention_2"),
        ("--model_init_kwargs", '{"attn_implementation": "flash_attention_2"}'),
    ],
)
def test_flash_attention_is_refused_before_the_model_loads(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Neither the data nor the model exist: the machine is asked first."""
    assert main(words(tmp_path, *flags)) == 2
    assert "--attn_implementation flash_attention_2 needs a GPU" in capsys.readouterr().err
