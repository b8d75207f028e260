"""PPO with a value model of its own: its values against a shared head's, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText

from tests.support.training import image_rows, picture, settings, user
from tests.support.value_models import OWN, SMALL_ADAPTER, ppo_trainer
from tests.support.values import FAST, expected_values, rollouts_of
from tests.trainers.test_algorithms import trained
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

FROZEN = {"freeze_vision_modules": True, "freeze_projector": True}  # image features are kept
ONE_IMAGE = [{"prompt": user("what color" * (n + 1)), "image": picture(0), "answer": str(n)} for n in range(16)]
PASSES = {
    "packed": {},
    "plain": {"shared_prefix": "off"},
    "frozen": FROZEN,
    "lora": {"adapter": True},
    "repeated_image": {"rows": Dataset.from_list(ONE_IMAGE)},  # two prompts of a pass show it
}


@pytest.mark.parametrize("way", ["packed", "plain", "frozen", "lora"])
def test_equal_weights_give_the_values_and_losses_of_a_shared_head(way: str, tiny_model: Path, tmp_path: Path):
    """The first update of a rollout with the same head weights: the own backbone is still the policy's."""
    rollouts, logs = [], []
    for kind in ("shared", "own"):
        options = {"algorithm_options": {"value_model": kind, "gamma": 0.9}, "max_steps": 1, **PASSES[way]}
        trainer = ppo_trainer(tiny_model, tmp_path, **options)
        generator = torch.Generator().manual_seed(1)
        trainer.critic.head.weight.data.normal_(generator=generator)
        trainer.critic.head.bias.data.fill_(0.3)
        rollouts += rollouts_of(trainer)
        logs.append(trainer.state.log_history[0])
    shared, own = rollouts
    assert torch.equal(shared["completion_ids"], own["completion_ids"])
    assert own["values"][own["completion_mask"].bool()].std() > 0.1
    for name in ("values", "returns"):
        assert torch.allclose(shared[name], own[name], atol=1e-5)
    assert torch.allclose(shared["advantages"], own["advantages"], atol=1e-4)  # divided by a small spread
    for name in ("loss", "value_loss", "explained_variance"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("way", PASSES.values(), ids=PASSES)
def test_values_after_an_update_are_those_of_the_own_backbone(way: dict, tiny_model: Path, tmp_path: Path):
    """By transformers' own forward of one row with its image; the policy's hidden states give other ones."""
    trainer = ppo_trainer(tiny_model, tmp_path, max_steps=4, **way)
    _, second = rollouts_of(trainer)
    for row, values in enumerate(second["expected"]):
        assert torch.allclose(second["values"][row, : len(values)], values, atol=1e-5) and values.abs().min() > 1e-4
    own = expected_values(trainer, second, 0)
    trainer.critic.head.backbone = None
    assert (expected_values(trainer, second, 0) - own).abs().max() > 1e-3


def bright_and_dark_rows() -> Dataset:
    """Rows with the same question whose answer, 0 or 1, shows in the brightness of the image alone."""
    return Dataset.from_list(
        [
            {"prompt": user("what color"), "image": picture(n).point(lambda value, n=n: value // 4 + 190 * (n % 2))}
            | {"answer": str(n % 2)}
            for n in range(32)
        ]
    )


def answer_reward(completions: list, answer: list, **columns: Any) -> list[float]:
    """The answer of the row, whatever the completion."""
    return [float(number) for number in answer]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_it_learns_a_reward_that_shows_in_the_image_alone(adapter: bool, tiny_model: Path, tmp_path: Path):
    """The policy stays as good as it is."""
    options = {"num_generations": 1, "per_device_train_batch_size": 8, "max_completion_length": 4, "max_steps": 48}
    options |= {"learning_rate": 1e-9, "value_learning_rate": 3e-3, "algorithm_options": {**OWN, "lam": 1.0}}
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options))
    config = LoraConfig(**SMALL_ADAPTER) if adapter else None
    data = bright_and_dark_rows()
    trainer = VLMGRPOTrainer(str(tiny_model), answer_reward, args, train_dataset=data, peft_config=config)
    trainer.train()
    log = [entry["explained_variance"] for entry in trainer.state.log_history if "explained_variance" in entry]
    assert abs(log[0]) < 1e-6 and log[-1] > 0.9, log


def test_while_it_warms_up_only_the_value_model_moves(tiny_model: Path, tmp_path: Path):
    before = AutoModelForImageTextToText.from_pretrained(tiny_model).state_dict()
    trainer = ppo_trainer(tiny_model, tmp_path, max_steps=3, value_warmup_steps=3)
    first = {name: value.clone() for name, value in trainer.critic.head.named_parameters()}
    trainer.train()
    after = trainer.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    moved = {name for name, value in trainer.critic.head.named_parameters() if not torch.equal(value, first[name])}
    assert {"weight", "bias"} < moved and any("language_model" in name for name in moved)
    assert any("visual" in name for name in moved)


def test_the_value_loss_does_not_reach_the_policy(tiny_model: Path, tmp_path: Path):
    """A constant reward is no advantage; the shared head's loss would teach the policy's layers."""
    options = {"max_steps": 3, "algorithm_options": {**OWN, "lam": 1.0}, **FAST}
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options))
    trainer = VLMGRPOTrainer(
        str(tiny_model), lambda completions, **columns: [1.0] * len(completions), args, train_dataset=image_rows()
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    losses = [entry["value_loss"] for entry in trainer.state.log_history[:3]]
    assert losses[0] > losses[1] > losses[2]


def test_it_has_a_learning_rate_of_its_own(tiny_model: Path, tmp_path: Path):
    """1e-5 by default; --weight_decay is for its matrices as for the policy's, the head has none."""
    for given, expected in ((None, 1e-5), (3e-3, 3e-3)):
        options = {"algorithm_options": OWN, "value_learning_rate": given, "weight_decay": 0.1}
        trainer = trained("ppo", tiny_model, tmp_path, **options)
        own = {id(each) for each in trainer.critic.head.parameters()}
        groups = trainer.optimizer.param_groups
        of_values = [[id(each) in own for each in group["params"]] for group in groups]
        assert [all(found) for found in of_values] == [any(found) for found in of_values]
        assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3, expected, expected, expected]
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0, 0.0]
        assert sum(map(len, of_values)) == len(list(trainer.model.parameters()))
        assert trainer.critic.head.weight.abs().max().item() == pytest.approx(expected, rel=1e-3)  # Adam's first step
