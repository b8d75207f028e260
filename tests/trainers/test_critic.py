"""PPO inside a training: values, advantages, the loss of values, and what the head learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.support.training import differences, image_rows, settings, user
from tests.trainers.test_algorithms import SAME_LENGTH, build, by_text, trained
from tests.trainers.test_distributed import write_data
from vlm_grpo.data import load_dataset
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

FAST = {"learning_rate": 2e-3, "value_learning_rate": 2e-2}
TWO_UPDATES = {"steps_per_generation": 2, **FAST}


def head_of(trainer: Any) -> Tensor:
    return torch.cat([each.detach().flatten() for each in trainer.critic.head.parameters()])


def rollouts_of(trainer: Any) -> list[dict[str, Any]]:
    """Train; every rollout, with the head at that time and the hidden states of each row, computed one by one."""
    seen: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions

    def watched(inputs: list) -> dict[str, Any]:
        output = generate(inputs)
        seen.append({**output, "expected": [expected_values(trainer, output, row) for row in range(len(inputs))]})
        return output

    trainer._generate_and_score_completions = watched
    trainer.train()
    return seen


@torch.no_grad()
def expected_values(trainer: Any, output: dict[str, Any], row: int) -> Tensor:
    """(length,) values by transformers' own forward of one row without padding."""
    sample = output["samples"][row]
    count = int(output["completion_mask"][row].sum())
    ids = [*sample.input_ids, *output["completion_ids"][row, :count].tolist()]
    per_token = {name: torch.tensor([values + [0] * count]) for name, values in sample.per_token.items()}
    fields = {"input_ids": torch.tensor([ids]), **per_token, **sample.visual}
    return values_of(trainer, fields, count)


@torch.no_grad()
def values_of(trainer: Any, fields: dict[str, Any], count: int) -> Tensor:
    """The values of the states before the last `count` tokens of one row."""
    own = getattr(trainer.critic.head, "backbone", None)
    if own is not None:
        hidden = own(**fields).last_hidden_state[0]
    else:
        hidden = trainer.model(**fields, output_hidden_states=True).hidden_states[-1][0]
    return hidden[-count - 1 : -1] @ trainer.critic.head.weight[0] + trainer.critic.head.bias


@pytest.mark.parametrize("shared_prefix", ["on", "off"])
def test_advantages_come_from_the_values_of_the_states_before_the_tokens(
    shared_prefix: str, tiny_model: Path, tmp_path: Path
):
    """Written out for the second rollout, when the head is no longer 0: lambda 0.9, gamma 0.99, whitened."""
    options = {**TWO_UPDATES, "max_steps": 4, "algorithm_options": {"lam": 0.9, "gamma": 0.99}}
    trainer = build("ppo", tiny_model, tmp_path, shared_prefix=shared_prefix, **options)
    first, second = rollouts_of(trainer)
    assert max(values.abs().max() for values in first["expected"]) == 0
    rewards, found = list(trainer._logs["rewards"]["by_text"]), []
    for reward, values, row in zip(rewards, second["expected"], range(16), strict=True):
        count, following, advantage, advantages = len(values), 0.0, 0.0, []
        assert torch.allclose(second["values"][row, :count], values, atol=1e-5) and values.abs().min() > 1e-4
        for place in reversed(range(count)):
            delta = (reward if place == count - 1 else 0.0) + 0.99 * following - values[place].item()
            advantage = delta + 0.99 * 0.9 * advantage
            following = values[place].item()
            advantages.insert(0, advantage)
        found.append(torch.tensor(advantages))
        assert torch.allclose(second["returns"][row, :count], found[-1] + values, atol=1e-4)
    known = torch.cat(found)
    for row, advantages in enumerate(found):
        expected = (advantages - known.mean()) / known.std()
        assert torch.allclose(second["advantages"][row, : len(expected)], expected, atol=1e-3)
        assert second["advantages"][row, len(expected) :].abs().sum() == 0
        assert trainer._logs["advantages"][row] == pytest.approx(expected.mean().item(), abs=1e-3)
    seen = torch.cat(second["expected"])
    returns = known + seen
    explained = 1 - (returns - seen).var() / returns.var()
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


@pytest.mark.parametrize("name", ["value_clip", "value_coef", "lam", "gamma"])
def test_options_reach_the_training(name: str, tiny_model: Path, tmp_path: Path):
    given = {"value_clip": 1e-3, "value_coef": 0.1, "lam": 0.5, "gamma": 0.5}[name]
    options = {**TWO_UPDATES, "max_steps": 4, "max_grad_norm": 1e3}
    runs = [trained("ppo", tiny_model, tmp_path, algorithm_options=o, **options) for o in (None, {name: given})]
    assert differences(*runs)["weights"] > 1e-5


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


@pytest.mark.parametrize("change", ["micro_batches", "plain_path", "token_budget", "cut", "lora"])
def test_updates_do_not_depend_on_how_they_are_computed(change: str, tiny_model: Path, tmp_path: Path):
    """Two rollouts of two updates. With LoRA: also of two micro-batches each, the head beside the adapter."""
    base = {"max_steps": 4, "num_iterations": 2, "steps_per_generation": 1, **FAST, **SAME_LENGTH}
    base["per_device_train_batch_size"] = 16
    halves = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 2}
    ways = {"plain_path": {"shared_prefix": "off"}, "token_budget": {"max_tokens_per_forward": 200}, "cut": {}}
    other = ways.get(change, halves)
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.0) if change == "lora" else None
    runs = []
    for options in (base, {**base, **other}):
        args = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options))
        run = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(16), peft_config=adapter)
        run.splitter.parts = 4 if change == "cut" and runs else 1  # as after a forward that found no memory
        run.train()
        runs.append(run)
    assert head_of(runs[0]).abs().max() > 1e-3
    assert (head_of(runs[0]) - head_of(runs[1])).abs().max() < 1e-3
    for one, two in zip(*(run.state.log_history[:4] for run in runs), strict=True):
        for name in ("value_loss", "grad_norm", "explained_variance"):
            assert two.get(name, 0.0) == pytest.approx(one.get(name, 0.0), rel=2e-3, abs=1e-4), name


def agent(prompts: list, trainer: Any) -> dict[str, Any]:
    """Completions of five tokens, of which the third and fourth are a tool's answer."""
    encoded = trainer.processing_class.apply_chat_template(
        prompts, tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]
    ids = [[20 + row % 4, 30, 40, 41, 50 + row % 3] for row in range(len(prompts))]
    rows = {"prompt_ids": encoded, "completion_ids": ids, "logprobs": [[-6.0] * 5] * len(ids)}
    return {**rows, "env_mask": [[1, 1, 0, 0, 1]] * len(ids)}


@pytest.mark.parametrize(("coefficient", "kind"), [(0.0, "shared"), (0.0, "own"), (3.0, "shared")])
@pytest.mark.parametrize("updates", [{"num_iterations": 2}, {}], ids=["off_policy", "on_policy"])
def test_a_tools_answer_is_stepped_over_on_trls_own_path(
    updates: dict, coefficient: float, kind: str, tiny_model: Path, tmp_path: Path
):
    """The first row's values by transformers' own forward, with its images."""
    write_data(tmp_path)
    rows = load_dataset(str(tmp_path / "a.jsonl"), image_folders=str(tmp_path))
    options = {
        "max_steps": 4,
        "kl_reward_coef": coefficient,
        "algorithm_options": {"lam": 1.0, "value_model": kind},
        **FAST,
        **updates,
    }
    args = VLMGRPOConfig.of(
        "ppo", **settings(tmp_path, per_device_train_batch_size=8, steps_per_generation=1, **options)
    )
    trainer = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=rows, rollout_func=agent)
    seen = []
    generate = trainer._generate_and_score_completions

    def watched(inputs: list) -> dict[str, Any]:
        output = generate(inputs)
        grids = output["image_grid_thw"][: output["num_images"][0]]
        ids = torch.cat([output["prompt_ids"][0][output["prompt_mask"][0].bool()], output["completion_ids"][0]])
        fields = {"pixel_values": output["pixel_values"][: grids.prod(dim=1).sum()], "image_grid_thw": grids}
        kinds = (ids == trainer.model.config.image_token_id).long()
        seen.append(
            (output, values_of(trainer, {"input_ids": ids[None], "mm_token_type_ids": kinds[None], **fields}, 5))
        )
        return output

    trainer._generate_and_score_completions = watched
    trainer.train()
    last, values = seen[-1]
    mask = torch.tensor([1, 1, 0, 0, 1])
    assert torch.allclose(last["values"][0], values, atol=1e-5) and values.std() > 1e-4
    assert torch.equal(last["tool_mask"], mask.expand(8, 5))
    rewards = torch.tensor(list(trainer._logs["rewards"]["by_text"]))[:, None]
    penalty = 0 if not coefficient else 3.0 * trainer.kl.kl.flip(1).cumsum(dim=1).flip(1)
    assert torch.allclose(last["returns"], (rewards - penalty) * mask, atol=1e-4)
    assert last["advantages"][:, 2:4].abs().max() == 0 and last["advantages"][:, :2].abs().min() > 0
    if coefficient:
        assert trainer.kl.kl[:, 2:4].abs().max() == 0 and trainer.kl.kl.abs().max() > 1e-4


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
