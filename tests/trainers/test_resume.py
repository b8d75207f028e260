"""A resumed run continues from the trained weights, bit for bit on a CPU. Stock TRL restarts from the base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

OPTIONS = [{"lora": True}, {"beta": 0.1}, {"gradient_accumulation_steps": 2}, {"save_steps": 5}]
MID_ROLLOUT = [  # checkpoint 3 falls between two steps of one rollout
    {"num_iterations": 2},
    {"num_iterations": 2, "lora": True},
    {"steps_per_generation": 2},
    {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "beta": 0.1},
]
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
@pytest.mark.parametrize("options", [{}, *OPTIONS, *MID_ROLLOUT], ids=str)
def test_resumed_run_is_bit_identical(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    """Four rows are an epoch of four steps (two with accumulation): every run crosses one, save_steps 5 is past it."""
    resumed, whole = interrupted_and_whole(kind, tiny_model, tmp_path, **options)
    assert step_losses(resumed) == step_losses(whole)
    assert weights_differ(resumed, whole) == 0


def test_stock_resumes_from_other_weights(tiny_model: Path, tmp_path: Path):
    resumed, whole = interrupted_and_whole("stock", tiny_model, tmp_path)
    assert weights_differ(resumed, whole) > 0


def test_stock_samples_anew_in_the_middle_of_a_rollout(tiny_model: Path, tmp_path: Path):
    resumed, whole = interrupted_and_whole("stock", tiny_model, tmp_path, lora=True, num_iterations=2)
    assert weights_differ(resumed, whole) > 0


def test_a_resumed_rollout_processes_its_images_once_and_keeps_no_pixels_on_disk(tiny_model: Path, tmp_path: Path):
    options = {"num_iterations": 4, "steps_per_generation": 2}
    build("grpo", tiny_model, tmp_path, **options).train()
    saved = torch.load(tmp_path / "checkpoint-3" / "rollout_0.pt", weights_only=False)
    assert saved["step"] == 3 and "pixel_values" not in str(saved)
    resumed = build("grpo", tiny_model, tmp_path, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.encoder.counters.processed == 2  # the two images of the rollout, for four completions each
    assert len({id(sample) for batch in resumed._buffered_inputs for sample in batch["samples"]}) == 2


def test_keys_that_do_not_fit_are_an_error(tiny_model: Path, tmp_path: Path):
    from vlm_grpo.tiny import TinySize, save_tiny_qwen

    trainer = build("grpo", tiny_model, tmp_path)
    trainer.train()
    save_tiny_qwen(tmp_path / "checkpoint-3", TinySize(layers=3))
    with pytest.raises(RuntimeError, match="layers"):
        build("grpo", tiny_model, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
