"""Checks of flag combinations and of this machine, before data and model are loaded.

Only conditions are checked that would otherwise fail late or silently change the run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trl import ModelConfig

    from vlm_grpo.trainers.config import VLMGRPOConfig


# Requirements of each flash attention implementation: the module to import, and how to install it.
FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": (
        "flash_attn_interface",
        "build it from the hopper folder of github.com/Dao-AILab/flash-attention",
    ),
    "flash_attention_4": ("flash_attn.cute", "pip install flash-attn-4"),
}

# Requirements of --report_to: the module to import, and the package that contains it.
REPORTERS = {
    **{name: (name, name) for name in ("wandb", "mlflow", "trackio", "clearml", "neptune", "codecarbon", "dagshub")},
    **{name: (name, name) for name in ("tensorboard", "dvclive", "swanlab", "comet_ml")},
    "azure_ml": ("azureml", "azureml-sdk"),
}


def validate_flags(model: ModelConfig, training: VLMGRPOConfig) -> list[str]:
    """Return one sentence for each conflict between flags, independent of the machine."""
    name = quantization_flag(model)
    if name is None:
        return []
    problems = []
    if not model.use_peft:
        problems.append(f"--{name} needs --use_peft: quantized weights cannot be trained, only an adapter can")
    plugin = getattr(training, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        problems.append(
            f"--{name} is incompatible with DeepSpeed ZeRO-3: transformers loads full quantized weights into every "
            "process, and their packed format cannot be sharded; use zero2.json, or remove --deepspeed"
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
        problems.append(f"--{name} needs a GPU, but none is available; remove the flag, or run on a machine with a GPU")
    if name is not None and find_spec("bitsandbytes") is None:
        problems.append(f"--{name} needs bitsandbytes: pip install 'vlm_grpo[quantization]'")
    problems += missing_packages(training)
    problems += missing_flash_attention(attention_flag(model, training), training.device.type)
    if uses_fsdp(training) and training.distributed_state.distributed_type in ("NO", "MULTI_CPU"):
        problems.append(
            "FSDP needs GPUs and a launcher (accelerate launch, torchrun): without them, accelerate would train "
            "without sharding; remove it"
        )
    return problems


def missing_packages(training: VLMGRPOConfig) -> list[str]:
    """Return one sentence for each missing package of a flag, with the command to install it."""
    problems = []
    is_in_process = getattr(training, "rollout_engine", None) == "vllm" and not training.rollout_url
    if is_in_process and not is_installed("vllm"):
        problems.append(
            "--rollout_engine vllm needs vllm, which is not installed: pip install 'vlm_grpo[vllm]'; or start a server "
            "elsewhere and set --rollout_url http://host:port"
        )
    reporters = getattr(training, "report_to", None) or []
    for name in [reporters] if isinstance(reporters, str) else reporters:
        module, package = REPORTERS.get(name, ("os", ""))
        if not is_installed(module):
            problems.append(
                f"--report_to {name} needs {package}, which is not installed: pip install {package}; or use "
                "--report_to tensorboard, which is installed"
            )
    return problems


def missing_flash_attention(implementation: str | None, device: str) -> list[str]:
    """Return one sentence if the requested flash attention implementation is not available."""
    if implementation not in FLASH_PACKAGES:
        return []
    module, command = FLASH_PACKAGES[implementation]
    without = "remove the flag to use sdpa; shared prompts use FlexAttention in both cases"
    if device == "cpu":
        return [f"--attn_implementation {implementation} needs a GPU, but none is available; {without}"]
    if not is_installed(module) and not is_installed(
        "kernels"
    ):  # transformers can also load it from the kernels package
        return [
            f"--attn_implementation {implementation} needs the package {module}, which is not installed: {command}; "
            f"or {without}"
        ]
    return []


def attention_flag(model: ModelConfig, training: VLMGRPOConfig) -> str | None:
    """Return the attention implementation selected by the flags."""
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
