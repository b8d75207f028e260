"""Models without images: the same rollouts, algorithms and dynamic sampling as models with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tests.support.templates import published, tokenizer_with
from tests.support.training import settings, user
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


def text_model() -> tuple[Qwen2ForCausalLM, Any]:
    words = tokenizer_with(published("qwen3_5_nothink"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen2Config(vocab_size=len(words), num_key_value_heads=1, eos_token_id=words.eos_token_id, **sizes)
    return Qwen2ForCausalLM(config), words


def rows() -> Dataset:
    return Dataset.from_list([{"prompt": user(f"what is {n}?"), "answer": "1", "expert": ["one 1"]} for n in range(4)])


def by_text(completions: list, **columns: Any) -> list[float]:
    return [(sum(map(ord, completion[0]["content"])) % 11) / 10 for completion in completions]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dapo", {"dynamic_sampling": 1, "gradient_accumulation_steps": 1, "steps_per_generation": 1}),
        ("remax", {}),
        ("ppo", {"num_generations": 4}),
        ("luffy", {}),
        ("uft", {"beta": 0.0}),  # a reference would be loaded from the model's path
    ],
)
def test_algorithms_train_a_text_model(name: str, options: dict[str, Any], tmp_path: Path):
    model, words = text_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = settings(tmp_path, max_steps=2, max_completion_length=12, learning_rate=1e-3) | options
    args = VLMGRPOConfig.of(name, chosen.pop("output_dir"), **chosen)
    trainer = VLMGRPOTrainer(model, by_text, args, train_dataset=rows(), processing_class=words)
    trainer.train()
    assert any((before[key] != value).any() for key, value in trainer.model.state_dict().items() if key in before)


def test_a_text_model_trains_as_by_trl(tmp_path: Path):
    trained = []
    first, words = text_model()
    for kind, config in ((GRPOTrainer, GRPOConfig), (VLMGRPOTrainer, VLMGRPOConfig)):
        model = copy.deepcopy(first)
        args = config(**settings(tmp_path, max_steps=2, max_completion_length=12))
        trainer = kind(model, by_text, args, train_dataset=rows(), processing_class=words)
        trainer.train()
        trained.append(trainer.model.state_dict())
    stock, ours = trained
    assert max((stock[name] - ours[name]).abs().max().item() for name in stock) < 1e-5


def test_a_rollout_function_has_no_dynamic_sampling(tmp_path: Path):
    model, words = text_model()
    chosen = settings(tmp_path, steps_per_generation=1)
    args = VLMGRPOConfig.of("dapo", chosen.pop("output_dir"), **chosen, dynamic_sampling=1)
    options = {"train_dataset": rows(), "processing_class": words}
    with pytest.raises(ValueError, match="--dynamic_sampling is incompatible with a rollout function"):
        VLMGRPOTrainer(model, by_text, args, rollout_func=lambda prompts, trainer: {}, **options)
