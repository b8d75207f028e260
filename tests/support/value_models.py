"""Small PPO trainers with a value model of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from tests.support.training import image_rows, settings
from tests.support.values import TWO_UPDATES
from tests.trainers.test_algorithms import by_text
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

OWN = {"value_model": "own"}
SMALL_ADAPTER = {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def ppo_trainer(
    model: Path, folder: Path, *, adapter: bool = False, rows: Any = None, **options: Any
) -> VLMGRPOTrainer:
    """Return a trainer with a value model of its own, unless `algorithm_options` say otherwise."""
    options = {"per_device_train_batch_size": 8, "algorithm_options": OWN, **TWO_UPDATES, **options}
    args = VLMGRPOConfig.of("ppo", **settings(folder, **options))
    config = LoraConfig(**SMALL_ADAPTER) if adapter else None
    return VLMGRPOTrainer(str(model), by_text, args, train_dataset=rows or image_rows(16), peft_config=config)


def saved_value_model(checkpoint: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's value model."""
    return load_file(checkpoint / "value_model.safetensors")
