"""What PPO's value head learns, and what its loss teaches the shared backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText

from tests.support.training import image_rows, settings, user
from tests.support.values import FAST, head_of
from tests.trainers.test_algorithms import trained
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


def test_a_predictable_reward_is_learnt_by_the_head(tiny_model: Path, tmp_path: Path):
    """The reward depends on the prompt alone, so a good value explains it; one completion of each prompt."""

    def by_prompt(completions: list, answer: list, **columns: Any) -> list[float]:
        return [float(number) for number in answer]

    options = {"num_generations": 1, "per_device_train_batch_size": 8, "max_steps": 32, "max_completion_length": 4}
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options, value_learning_rate=1e-2, learning_rate=3e-3))
    rows = [{"prompt": user(("what color", "how many shapes")[n % 2] * 4), "answer": str(n % 2)} for n in range(32)]
    trainer = VLMGRPOTrainer(str(tiny_model), by_prompt, args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    log = [entry["explained_variance"] for entry in trainer.state.log_history if "explained_variance" in entry]
    assert log[0] == 0 and log[-1] > 0.9


def test_while_it_warms_up_only_the_head_moves(tiny_model: Path, tmp_path: Path):
    before = AutoModelForImageTextToText.from_pretrained(tiny_model).state_dict()
    trainer = trained("ppo", tiny_model, tmp_path, max_steps=2, value_warmup_steps=2, **FAST)
    after = trainer.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert head_of(trainer).abs().max() > 1e-3
    longer = trained("ppo", tiny_model, tmp_path, max_steps=3, value_warmup_steps=2, **FAST).model.state_dict()
    assert any(not torch.equal(before[name], longer[name]) for name in before)


def test_the_value_loss_teaches_the_shared_backbone(tiny_model: Path, tmp_path: Path):
    """Advantages of 0, equal returns less values of 0, leave the policy's loss without a gradient."""
    options = {"max_steps": 3, "algorithm_options": {"lam": 1.0}, **FAST}
    constant = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options))
    trainer = VLMGRPOTrainer(
        str(tiny_model), lambda completions, **columns: [1.0] * len(completions), constant, train_dataset=image_rows()
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("layers" in name for name in moved)
    assert trainer.state.log_history[1]["value_loss"] < trainer.state.log_history[0]["value_loss"]
