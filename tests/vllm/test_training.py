"""Trainings whose completions come from a real vLLM: after every update it samples what the trainer scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from tests.support.environments import Gallery
from tests.support.training import image_rows, length_reward, picture, settings, user
from vlm_grpo.envs.tool_parser import HermesToolParser
from vlm_grpo.rewards.tool_call import ToolCall
from vlm_grpo.rollouts.engines.weight_sync import WeightSync
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

LARGEST = "sampling/sampling_logp_difference/max"
pytestmark = pytest.mark.usefixtures("one_engine")


def rows(count: int = 4) -> Dataset:
    """Rows with none, one and two images, in one batch."""
    images = [[], [picture(1)], [picture(2, 112, 84), picture(3)]]
    return Dataset.from_list(
        [{"prompt": user("what color is the shape " * (n + 1)), "images": images[n % 3]} for n in range(count)]
    )


def trainer(model: Path, folder: Path, data: Any = None, trainer_options: Any = None, **options: Any) -> VLMGRPOTrainer:
    options = {"max_steps": 3, "learning_rate": 1e-2, "rollout_engine": "vllm", **options}
    args = VLMGRPOConfig(**settings(folder, **{"per_device_train_batch_size": 8, **options}))
    data = rows() if data is None else data
    return VLMGRPOTrainer(str(model), length_reward, args, train_dataset=data, **(trainer_options or {}))


def largest(run: Any) -> list[float]:
    """Return the largest difference of a token's log-probability between engine and trainer, step by step."""
    return [log[LARGEST] for log in run.state.log_history if LARGEST in log]


def test_three_updates_with_a_trained_vision_encoder(untied_model: Path, tmp_path: Path):
    run = trainer(untied_model, tmp_path)
    tower = next(each for name, each in run.model.named_parameters() if "visual" in name).detach().clone()
    run.train()
    assert not torch.equal(tower, next(each for name, each in run.model.named_parameters() if "visual" in name))
    assert len(largest(run)) == 3
    assert max(largest(run)) < 1e-4
    assert run.state.log_history[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)


def test_an_update_that_is_left_out_is_seen(untied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    update = WeightSync.update
    monkeypatch.setattr(WeightSync, "update", lambda self, step: update(self, step) if step == 0 else None)
    run = trainer(untied_model, tmp_path)
    run.train()
    first, *later = largest(run)
    assert first < 1e-4
    assert min(later) > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 2},
        {"dynamic_sampling": 2},
        {"algorithm": "remax", "num_generations": 1, "per_device_train_batch_size": 2},
        {"shared_prefix": "off", "beta": 0.1},
        {"algorithm": "ppo", "num_generations": 1, "per_device_train_batch_size": 2},
    ],
    ids=lambda options: "+".join(options),
)
def test_goes_with(options: dict[str, Any], untied_model: Path, tmp_path: Path):
    run = trainer(untied_model, tmp_path, **options)
    run.train()
    assert max(largest(run)) < 1e-4


def test_an_adapter_is_merged_for_the_engine_alone(untied_model: Path, tmp_path: Path):
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    run = trainer(untied_model, tmp_path, trainer_options={"peft_config": peft})
    before = {name: each.detach().clone() for name, each in run.model.named_parameters() if ".base_layer." in name}
    run.train()
    assert max(largest(run)) < 1e-4
    after = dict(run.model.named_parameters())
    assert before
    assert all(torch.equal(each, after[name]) for name, each in before.items())


def test_resuming_gives_a_new_engine_the_weights(untied_model: Path, tmp_path: Path):
    first = trainer(untied_model, tmp_path, save_strategy="steps", save_steps=2)
    first.train()
    again = trainer(untied_model, tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert max(largest(again)) < 1e-4


def test_turns_with_images_continue_the_sampled_tokens(
    untied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the random model writes counts as a call; it is made to end its turns, which no log-probability shows."""
    look = [ToolCall("look", {"color": "red"})]
    monkeypatch.setattr(HermesToolParser, "calls", lambda self, text: look)
    end = AutoTokenizer.from_pretrained(untied_model).eos_token_id
    run = trainer(
        untied_model,
        tmp_path,
        trainer_options={"environment_factory": Gallery},
        generation_kwargs={"logit_bias": {end: 4.0}},
        max_completion_length=200,
        max_turns=3,
        tool_format="hermes",
    )
    run.train()
    logs = run.state.log_history[0]
    assert logs["episodes/shown"] == 3
    assert logs["episodes/turns"] == 3
    assert max(largest(run)) < 1e-4


def test_rloo(untied_model: Path, tmp_path: Path):
    args = VLMRLOOConfig(**settings(tmp_path, use_vllm=True, max_steps=2))
    run = VLMRLOOTrainer(str(untied_model), length_reward, args, train_dataset=image_rows())
    run.train()
    assert len(largest(run)) == 2
    assert max(largest(run)) < 1e-4
