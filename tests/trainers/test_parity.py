"""On image-only data our trainers are TRL's: same losses, metrics, gradient norms and weights, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import AutoConfig, AutoProcessor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.support.training import differences, image_rows, length_reward, settings
from vlm_grpo.model_utils import placeholder_ids
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

GRPO = (GRPOTrainer, GRPOConfig, VLMGRPOTrainer, VLMGRPOConfig)
RLOO = (RLOOTrainer, RLOOConfig, VLMRLOOTrainer, VLMRLOOConfig)
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
TOLERANCE = 1e-5


def two_or_none(completions: list, **columns: object) -> list[float]:
    """A signal in every group of four."""
    return [float(number % 4 > 1) for number in range(len(completions))]


def train_both(
    kinds: tuple, model: Path, folder: Path, lora: bool, reward: Callable = length_reward, **options: object
) -> dict[str, float]:
    stock, stock_config, ours, our_config = kinds
    # TRL suppresses the image's placeholder alone; both shall draw from the same tokens.
    suppressed = placeholder_ids(AutoConfig.from_pretrained(model), AutoProcessor.from_pretrained(model))
    options["generation_kwargs"] = {"suppress_tokens": suppressed, **options.get("generation_kwargs", {})}
    shared_prefix = options.pop("shared_prefix")
    runs = []
    for trainer, config in ((stock, stock_config), (ours, our_config)):
        adapter = LoraConfig(target_modules=["q_proj", "v_proj"], lora_alpha=32) if lora else None
        args = config(**settings(folder, max_steps=3, **options))
        if config is our_config:
            args.shared_prefix = shared_prefix
        run = trainer(str(model), reward, args, train_dataset=image_rows(), peft_config=adapter)
        run.train()
        runs.append(run)
    assert any(abs(entry.get("grad_norm", 0)) > 1e-6 for entry in runs[0].state.log_history)  # something was learned
    return differences(*runs)


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss", [*LOSSES, "rloo"])
def test_equals_stock(
    loss: str, beta: float, lora: bool, accumulation: int, iterations: int, tiny_model: Path, tmp_path: Path
):
    kinds, options = (RLOO, {}) if loss == "rloo" else (GRPO, {"loss_type": loss})
    options |= {"beta": beta, "gradient_accumulation_steps": accumulation, "num_iterations": iterations}
    options |= {"shared_prefix": "off"}
    worst = train_both(kinds, tiny_model, tmp_path, lora, **options)
    assert max(worst.values()) <= TOLERANCE, worst


@pytest.mark.parametrize("kind", [{}, {"num_iterations": 2, "beta": 0.1}, {"lora": True, "beta": 0.1}], ids=str)
@pytest.mark.parametrize("loss", [*LOSSES, "rloo"])
def test_shared_prompts_equal_stock(loss: str, kind: dict, tiny_model: Path, tmp_path: Path):
    """Losses, metrics and gradient norms; Adam makes more of the last bits of a gradient than 1e-5 of a weight.

    All completions are equally long: rows that end early leave our batch, and other random numbers would be drawn.
    """
    kinds, options = (RLOO, {}) if loss == "rloo" else (GRPO, {"loss_type": loss})
    options |= {"lora": False, "per_device_train_batch_size": 8, "shared_prefix": "on", **kind}
    options["generation_kwargs"] = {"min_new_tokens": 8}
    worst = train_both(kinds, tiny_model, tmp_path, reward=two_or_none, **options)
    assert worst["logs"] <= TOLERANCE and worst["weights"] <= 10 * TOLERANCE, worst
