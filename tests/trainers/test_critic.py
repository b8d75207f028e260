"""PPO inside a training: values, advantages, the loss of values, and the options of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.training import differences, image_rows, settings
from tests.support.values import FAST, TWO_UPDATES, expected_values, rollouts_of
from tests.trainers.test_algorithms import build, trained
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


def gae_by_hand(reward: float, values: Tensor, lam: float, gamma: float) -> Tensor:
    """Return (T,) advantages of one completion, whose reward comes with its last token (arXiv:1506.02438, eq. 16)."""
    advantages, following, advantage = [], 0.0, 0.0
    for step in reversed(range(len(values))):
        delta = (reward if step == len(values) - 1 else 0.0) + gamma * following - values[step].item()
        advantage = delta + gamma * lam * advantage
        following = values[step].item()
        advantages.insert(0, advantage)
    return torch.tensor(advantages)


@pytest.mark.parametrize("shared_prefix", ["on", "off"])
def test_advantages_come_from_the_values_of_the_states_before_the_tokens(
    shared_prefix: str, tiny_model: Path, tmp_path: Path
):
    """Written out for the second rollout, when the head is no longer 0: lambda 0.9, gamma 0.99, whitened."""
    options = {**TWO_UPDATES, "max_steps": 4, "algorithm_options": {"lam": 0.9, "gamma": 0.99}}
    trainer = build("ppo", tiny_model, tmp_path, shared_prefix=shared_prefix, **options)
    first, second = rollouts_of(trainer)
    assert max(values.abs().max() for values in first["expected"]) == 0
    values_by_row, rewards = second["expected"], list(trainer._logs["rewards"]["by_text"])
    expected = [gae_by_hand(*pair, lam=0.9, gamma=0.99) for pair in zip(rewards, values_by_row, strict=True)]
    for row, (values, advantages) in enumerate(zip(values_by_row, expected, strict=True)):
        assert values.abs().min() > 1e-4
        assert torch.allclose(second["values"][row, : len(values)], values, atol=1e-5)
        assert torch.allclose(second["returns"][row, : len(values)], advantages + values, atol=1e-4)
    tokens = torch.cat(expected)
    for row, advantages in enumerate(expected):
        whitened = (advantages - tokens.mean()) / tokens.std()
        assert torch.allclose(second["advantages"][row, : len(whitened)], whitened, atol=1e-3)
        assert second["advantages"][row, len(whitened) :].abs().sum() == 0
        assert trainer._logs["advantages"][row] == pytest.approx(whitened.mean().item(), abs=1e-3)
    returns = tokens + torch.cat(values_by_row)
    explained = 1 - tokens.var() / returns.var()
    assert trainer.state.log_history[2]["explained_variance"] == pytest.approx(explained.item(), abs=1e-3)


def test_the_value_loss_is_that_of_the_current_and_the_old_values(tiny_model: Path, tmp_path: Path):
    """Written out for the second update of a rollout, whose values have moved; half of half the clipped square."""
    trainer = build("ppo", tiny_model, tmp_path, num_iterations=2, steps_per_generation=1, max_steps=4, **FAST)
    found = []
    compute = trainer._compute_loss

    def watched(model: Any, inputs: dict[str, Any]) -> Tensor:
        squares = []
        for row in range(8):
            values = expected_values(trainer, inputs, row)
            old, returns = (inputs[name][row, : len(values)] for name in ("values", "returns"))
            near = old + (values - old).clamp(-0.2, 0.2)
            squares.append(torch.maximum((values - returns) ** 2, (near - returns) ** 2))
        found.append(0.25 * torch.cat(squares).mean().item())
        return compute(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    logged = [entry["value_loss"] for entry in trainer.state.log_history[:4]]
    assert logged == pytest.approx(found, rel=1e-4) and logged[2] != logged[3]


def test_the_kl_penalises_tokens(tiny_model: Path, tmp_path: Path):
    """With lambda 1 a return is the reward minus the KL from its token on."""
    options = {**TWO_UPDATES, "max_steps": 4, "algorithm_options": {"lam": 1.0}, "kl_reward_coef": 3.0}
    trainer = build("ppo", tiny_model, tmp_path, **options)
    _, second = rollouts_of(trainer)
    rewards = torch.tensor(list(trainer._logs["rewards"]["by_text"]))
    to_go = trainer.kl.kl.flip(1).cumsum(dim=1).flip(1)
    expected = (rewards[:, None] - 3.0 * to_go) * second["completion_mask"]
    assert trainer.kl.kl.abs().max() > 1e-3 and torch.allclose(second["returns"], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["value_clip", "value_coef", "lam", "gamma"])
def test_options_reach_the_training(name: str, tiny_model: Path, tmp_path: Path):
    given = {"value_clip": 1e-3, "value_coef": 0.1, "lam": 0.5, "gamma": 0.5}[name]
    options = {**TWO_UPDATES, "max_steps": 4, "max_grad_norm": 1e3}
    runs = [trained("ppo", tiny_model, tmp_path, algorithm_options=o, **options) for o in (None, {name: given})]
    assert differences(*runs)["weights"] > 1e-5


def test_a_completion_without_a_reward_teaches_nothing(tiny_model: Path, tmp_path: Path):
    """The others earn 5: at first, with values of 0, the loss of each of their tokens is 25 / 4."""

    def some(completions: list, **columns: Any) -> list[float | None]:
        return [None if row % 4 == 0 else 5.0 for row, _ in enumerate(completions)]

    options = {"max_steps": 4, "algorithm_options": {"lam": 1.0}, **TWO_UPDATES}
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, per_device_train_batch_size=8, **options))
    trainer = VLMGRPOTrainer(str(tiny_model), some, args, train_dataset=image_rows(16))
    first, second = rollouts_of(trainer)
    for rollout in (first, second):
        is_unknown = torch.arange(16) % 4 == 0
        assert torch.equal(rollout["returns"].isnan().any(dim=1), is_unknown)
        assert rollout["advantages"][is_unknown].abs().max() == 0 and not rollout["advantages"].isnan().any()
    assert trainer.state.log_history[0]["value_loss"] == pytest.approx(6.25)


def test_one_update_of_a_rollout_is_allowed(tiny_model: Path, tmp_path: Path):
    """TRL then computes no old log-probabilities; the values come from a pass of their own."""
    trainer = build("ppo", tiny_model, tmp_path, steps_per_generation=1, max_steps=2, **FAST)
    for rollout in rollouts_of(trainer):
        for row, values in enumerate(rollout["expected"]):
            assert torch.allclose(rollout["values"][row, : len(values)], values, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"value_learning_rate": 1e-4}, "--value_learning_rate has no effect without a value model"),
        ("grpo", {"value_warmup_steps": 5}, "--value_warmup_steps has no effect without a value model"),
        ("ppo", {"value_learning_rate": 0.0}, "--value_learning_rate must be above 0, got 0"),
        ("ppo", {"value_warmup_steps": -1}, "--value_warmup_steps must not be negative"),
        ("ppo", {"loss_type": "cispo"}, "--algorithm ppo takes --loss_type grpo, dr_grpo, dapo, got cispo"),
        ("ppo", {"sync_ref_model": True, "beta": 0.1}, "--sync_ref_model does not go with --algorithm ppo"),
        ("ppo", {"dynamic_sampling": 3}, "--dynamic_sampling leaves out groups of equal rewards"),
        (
            "ppo",
            {"algorithm_options": {"clip": 0.1}},
            "has no option 'clip'; it has value_model, gamma, lam, value_clip",
        ),
        ("ppo", {"multi_objective_aggregation": "normalize_then_sum"}, "--algorithm ppo has its own advantage"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        VLMGRPOConfig.of(name, **settings(tmp_path, **options))
