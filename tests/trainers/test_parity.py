"""On image-only data our trainers are TRL's: same losses, metrics and weights, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.support.training import differences, image_rows, length_reward, settings
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

GRPO = (GRPOTrainer, GRPOConfig, VLMGRPOTrainer, VLMGRPOConfig)
RLOO = (RLOOTrainer, RLOOConfig, VLMRLOOTrainer, VLMRLOOConfig)
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
MULTI = {"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 3}


def train_both(kinds: tuple, model: Path, folder: Path, lora: bool = False, **options: object) -> dict[str, float]:
    stock, stock_config, ours, our_config = kinds
    runs = []
    for trainer, config in ((stock, stock_config), (ours, our_config)):
        adapter = LoraConfig(target_modules=["q_proj", "v_proj"], lora_alpha=32) if lora else None
        args = config(**settings(folder, **options))
        run = trainer(str(model), length_reward, args, train_dataset=image_rows(), peft_config=adapter)
        run.train()
        runs.append(run)
    assert any(abs(entry.get("grad_norm", 0)) > 1e-6 for entry in runs[0].state.log_history)  # something was learned
    return differences(*runs)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_grpo_equals_stock_for_every_loss(loss: str, beta: float, tiny_model: Path, tmp_path: Path):
    worst = train_both(GRPO, tiny_model, tmp_path, loss_type=loss, beta=beta, **MULTI)
    assert max(worst.values()) <= 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("multi", [{}, MULTI])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kinds", [GRPO, RLOO], ids=["grpo", "rloo"])
def test_equals_stock_with_lora_beta_and_iterations(kinds, lora, multi, beta, tiny_model: Path, tmp_path: Path):
    worst = train_both(kinds, tiny_model, tmp_path, lora=lora, beta=beta, **multi)
    assert max(worst.values()) <= 1e-5
