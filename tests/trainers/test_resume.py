"""A resumed run continues from the trained weights, bit for bit on a CPU. Stock TRL restarts from the base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {
    "grpo": (VLMGRPOTrainer, VLMGRPOConfig),
    "rloo": (VLMRLOOTrainer, VLMRLOOConfig),
    "stock": (GRPOTrainer, GRPOConfig),
}


def build(kind: str, model: Path, folder: Path, lora: bool = False, **options: Any) -> Any:
    trainer, config = KINDS[kind]
    arguments = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, **options}
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"]) if lora else None
    args = config(**settings(folder, **arguments))
    return trainer(str(model), length_reward, args, train_dataset=image_rows(), peft_config=adapter)


def interrupted_and_whole(kind: str, model: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    whole = build(kind, model, folder, **options)
    whole.train()
    resumed = build(kind, model, folder, **options)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{options.get('save_steps', 3)}"))
    return resumed, whole


def weights_differ(one: Any, other: Any) -> float:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def step_losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "options", [{}, {"lora": True}, {"beta": 0.1}, {"gradient_accumulation_steps": 2}, {"save_steps": 5}], ids=str
)
def test_resumed_run_is_bit_identical(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    """Four rows are an epoch of four steps (two with accumulation): every run crosses one, save_steps 5 is past it."""
    resumed, whole = interrupted_and_whole(kind, tiny_model, tmp_path, **options)
    assert step_losses(resumed) == step_losses(whole)
    assert weights_differ(resumed, whole) == 0


def test_stock_resumes_from_other_weights(tiny_model: Path, tmp_path: Path):
    resumed, whole = interrupted_and_whole("stock", tiny_model, tmp_path)
    assert weights_differ(resumed, whole) > 0


def test_keys_that_do_not_fit_are_an_error(tiny_model: Path, tmp_path: Path):
    from vlm_grpo.tiny import TinySize, save_tiny_qwen

    trainer = build("grpo", tiny_model, tmp_path)
    trainer.train()
    save_tiny_qwen(tmp_path / "checkpoint-3", TinySize(layers=3))
    with pytest.raises(RuntimeError, match="layers"):
        build("grpo", tiny_model, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
