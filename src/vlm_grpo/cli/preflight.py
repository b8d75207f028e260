"""Checks of flag combinations and of this machine, before data and model are loaded.

Only conditions that would otherwise fail late or silently change the run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trl import ModelConfig

    from vlm_grpo.trainers.config import VLMGRPOConfig


# What each flash attention of transformers needs: the module to import, and how to install it.
FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": (
        "flash_attn_interface",
        "build it from the hopper folder of github.com/Dao-AILab/flash-attention",
    ),
    "flash_attention_4": ("flash_attn.cute", "pip install flash-attn-4"),
}

# What --report_to needs: the module to import, and the package that has it.
REPORTERS = {
    **{name: (name, name) for name in ("wandb", "mlflow", "trackio", "clearml", "neptune", "codecarbon", "dagshub")},
    **{name: (name, name) for name in ("tensorboard", "dvclive", "swanlab", "comet_ml")},
    "azure_ml": ("azureml", "azureml-sdk"),
}


def validate_flags(model: ModelConfig, training: VLMGRPOConfig) -> list[str]:
    """Return one sentence for each conflict between flags, on any machine."""
    name = quantization_flag(model)
    if name is None:
        return []
    problems = []
    if not model.use_peft:
        problems.append(f"--{name} needs --use_peft: quantized weights are not trained, the adapter beside them is")
    plugin = getattr(training, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        problems.append(
            f"--{name} is incompatible with DeepSpeed ZeRO-3: transformers loads quantized weights whole into every "
            "process, and their packed form cannot be sharded; use zero2.json, or no --deepspeed"
        )
    if name == "load_in_8bit" and uses_fsdp(training):
        problems.append(
            "--load_in_8bit is incompatible with FSDP, which cannot shard 8-bit weights; use --load_in_4bit"
        )
    return problems


def missing_requirements(model: ModelConfig, training: VLMGRPOConfig) -> list[str]:
    """Return one sentence for each missing requirement of the run on this machine."""
    problems = []
    name = quantization_flag(model)
    if name is not None and training.device.type == "cpu":
        problems.append(f"--{name} needs a GPU and this run has none; leave the flag out, or run where a GPU is")
    if name is not None and find_spec("bitsandbytes") is None:
        problems.append(f"--{name} needs bitsandbytes: pip install 'vlm_grpo[quantization]'")
    problems += missing_packages(training)
    problems += missing_flash_attention(attention_flag(model, training), training.device.type)
    if uses_fsdp(training) and training.distributed_state.distributed_type in ("NO", "MULTI_CPU"):
        problems.append(
            "FSDP needs GPUs and a launcher (accelerate launch, torchrun): accelerate would not shard here, but train "
            "as without it; leave it out"
        )
    return problems


def missing_packages(training: VLMGRPOConfig) -> list[str]:
    """Return one sentence for each missing package of a flag, with the command to install it."""
    problems = []
    if getattr(training, "use_vllm", False) and not is_installed("vllm"):
        problems.append("--use_vllm needs vllm, which is not installed: pip install 'vlm_grpo[vllm]'")
    reporters = getattr(training, "report_to", None) or []
    for name in [reporters] if isinstance(reporters, str) else reporters:
        module, package = REPORTERS.get(name, ("os", ""))
        if not is_installed(module):
            problems.append(
                f"--report_to {name} needs {package}, which is not installed: pip install {package}; or --report_to "
                "tensorboard, which is"
            )
    return problems


def missing_flash_attention(implementation: str | None, device: str) -> list[str]:
    """Return one sentence if the requested flash attention is not available; nothing for other implementations."""
    if implementation not in FLASH_PACKAGES:
        return []
    module, command = FLASH_PACKAGES[implementation]
    without = "leave the flag out: sdpa is taken, and shared prompts go through FlexAttention with either"
    if device == "cpu":
        return [f"--attn_implementation {implementation} needs a GPU and this run has none; {without}"]
    if not is_installed(module) and not is_installed("kernels"):  # from which transformers would take it
        return [
            f"--attn_implementation {implementation} needs the package {module}, which is not installed: {command}; "
            f"or {without}"
        ]
    return []


def attention_flag(model: ModelConfig, training: VLMGRPOConfig) -> str | None:
    """Return the attention implementation that the flags ask for."""
    options = getattr(training, "model_init_kwargs", None)
    requested = options.get("attn_implementation") if isinstance(options, dict) else None
    return requested or getattr(model, "attn_implementation", None)


def is_installed(module: str) -> bool:
    """Return whether a module can be found; its parent package may be missing."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def quantization_flag(model: ModelConfig) -> str | None:
    """Return the flag that requests quantized weights; None without one."""
    return next((name for name in ("load_in_4bit", "load_in_8bit") if getattr(model, name)), None)


def uses_fsdp(training: VLMGRPOConfig) -> bool:
    """Return whether --fsdp or accelerate's launcher enables FSDP."""
    return bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
