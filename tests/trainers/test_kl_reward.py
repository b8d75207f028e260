"""The KL in the reward: what the advantages are made of, the coefficient that follows a target, two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.support.training import differences, image_rows, settings
from tests.trainers.test_algorithms import SAME_LENGTH, build, by_text, trained
from tests.trainers.test_distributed import assert_equal_steps, train, write_data
from vlm_grpo.algorithms import ALGORITHMS
from vlm_grpo.algorithms.group import EPSILON
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

MOVED = {"max_steps": 2, "learning_rate": 2e-2, "beta": 0.0}  # the second rollout is of a policy that has moved
OF_GRPO = {name: config for name, config in ALGORITHMS.items() if config.trainer == "grpo"}
SAMPLED = [name for name, config in OF_GRPO.items() if not config.family.needs_demonstrations]


def last_rollout(trainer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Train, and give the last rollout's rewards, lengths, log-probabilities under the policy and the reference model,
    computed anew before the policy moves on, and advantages."""
    seen: list[tuple] = []
    generate = trainer._generate_and_score_completions

    def watched(inputs: list) -> dict[str, Any]:
        output = generate(inputs)
        with torch.no_grad():
            batch = RolloutBatch.from_trl_dict(output)
            logps = [trainer.completion_logprobs(batch, model).logps for model in (trainer.model, trainer.ref_model)]
        rewards = torch.tensor(list(trainer._logs["rewards"]["by_text"]))
        seen.append((rewards, output["completion_mask"], *logps, output["advantages"]))
        return output

    trainer._generate_and_score_completions = watched
    trainer.train()
    return seen[-1]


@pytest.mark.parametrize("shared_prefix", ["auto", "off"])
def test_the_kl_of_a_completion_is_subtracted_from_its_reward(shared_prefix: str, tiny_model: Path, tmp_path: Path):
    """Dr.GRPO by hand. The loss itself has no KL, and the logged reward is what the rewards paid."""
    trainer = build("dr_grpo", tiny_model, tmp_path, kl_reward_coef=2.0, shared_prefix=shared_prefix, **MOVED)
    rewards, mask, policy, reference, advantages = last_rollout(trainer)
    kl = ((policy - reference) * mask).sum(dim=1)
    penalised = (rewards - 2.0 * kl).view(2, 4)
    expected = (penalised - penalised.mean(dim=1, keepdim=True)).flatten()
    assert kl.abs().max() > 0.01
    assert torch.allclose(advantages, expected, atol=1e-4)
    assert torch.allclose(torch.tensor(list(trainer._logs["advantages"])), expected, atol=1e-4)
    log = trainer.state.log_history[1]
    assert log["reward"] == pytest.approx(rewards.mean().item()) and "kl" not in log and trainer.beta == 0
    assert log["kl_in_reward"] == pytest.approx((kl.sum() / mask.sum()).item(), abs=1e-5)
    assert log["kl_in_reward_coefficient"] == 2.0


def test_the_reference_may_follow_the_policy_and_arguments_stay_as_given(tiny_model: Path, tmp_path: Path):
    """TRL loads and syncs a reference for a coefficient of the loss alone, which is 0 here."""
    options = {"kl_reward_coef": 2.0, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    args = VLMGRPOConfig(**settings(tmp_path, hub_token="hf_secret", **options, **MOVED))
    trainer = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows())
    trainer.train()
    assert args.beta == trainer.args.beta == trainer.beta == 0 and trainer.args.hub_token == "hf_secret"
    pairs = zip(trainer.ref_model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    plain = AutoModelForImageTextToText.from_pretrained(tiny_model)
    assert not torch.equal(trainer.ref_model.lm_head.weight.cpu(), plain.lm_head.weight)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_trls_scaling_of_rewards_stays(scale: str, tiny_model: Path, tmp_path: Path):
    """No algorithm by name: the reward is penalised before it is centred and scaled."""
    options = {"scale_rewards": scale, "kl_reward_coef": 2.0, "kl_estimator": "k2", **MOVED}
    args = VLMGRPOConfig(**settings(tmp_path, per_device_train_batch_size=8, **options))
    trainer = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(16))
    rewards, mask, policy, reference, advantages = last_rollout(trainer)
    penalised = (rewards - 2.0 * ((policy - reference).square() / 2 * mask).sum(dim=1)).view(2, 4)
    spread = {"group": penalised.std(dim=1, keepdim=True), "none": 1 - EPSILON, "batch": penalised.std()}[scale]
    expected = (penalised - penalised.mean(dim=1, keepdim=True)) / (spread + EPSILON)
    assert torch.allclose(advantages, expected.flatten(), atol=1e-3)


def test_reinforce_plus_plus_credits_tokens(tiny_model: Path, tmp_path: Path):
    """A_t = r - beta times the KL from t on, normalised over all tokens; each token has an advantage of its own."""
    trainer = build("reinforce_plus_plus", tiny_model, tmp_path, kl_reward_coef=2.0, **MOVED)
    rewards, mask, policy, reference, advantages = last_rollout(trainer)
    kl = (policy - reference) * mask
    returns = torch.stack([rewards - 2.0 * kl[:, start:].sum(dim=1) for start in range(kl.size(1))], dim=1)
    known = returns[mask.bool()]
    expected = (returns - known.mean()) / known.std() * mask
    assert advantages.shape == mask.shape and advantages.std(dim=1).max() > 1e-3
    assert torch.allclose(advantages, expected, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLED)
def test_every_algorithm_takes_the_penalty(name: str, tiny_model: Path, tmp_path: Path):
    """Two rollouts of two updates; with the KL at 50 times the reward, the second one teaches something else."""
    options = {**MOVED, "max_steps": 4, "steps_per_generation": 2, **SAME_LENGTH}
    if ALGORITHMS[name].is_on_policy:
        del options["steps_per_generation"]
    if ALGORITHMS[name].settings.get("dynamic_sampling"):
        options["dynamic_sampling"] = 0
    runs = [trained(name, tiny_model, tmp_path, kl_reward_coef=given, **options) for given in (0.0, 50.0)]
    assert differences(*runs)["weights"] > 1e-4
    assert runs[1].ref_model is not None and runs[0].ref_model is None


def test_k3_is_trls_kl(tiny_model: Path, tmp_path: Path):
    """TRL logs the k3 estimate of the KL in its loss; in the first pass over a rollout that of the reward is the same.

    With both on, both are logged, and the loss still has its own.
    """
    options = {**MOVED, "max_steps": 3, "beta": 0.1, "kl_reward_coef": 0.5, "kl_estimator": "k3"}
    for entry in trained("grpo", tiny_model, tmp_path, **options).state.log_history[1:3]:
        assert entry["kl"] > 1e-4 and entry["kl_in_reward"] == pytest.approx(entry["kl"], rel=1e-3)


@pytest.mark.parametrize("name", ["grpo", "reinforce_plus_plus"])
def test_a_step_does_not_depend_on_its_micro_batches(name: str, tiny_model: Path, tmp_path: Path):
    options = {"max_steps": 3, "learning_rate": 1e-3, "kl_reward_coef": 5.0, "kl_target": 0.1, **SAME_LENGTH}
    whole = trained(name, tiny_model, tmp_path, **options)
    parts = trained(name, tiny_model, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    for one, other in zip(whole.state.log_history[:3], parts.state.log_history[:3], strict=True):
        for key in ("kl_in_reward", "kl_in_reward_coefficient", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key


def peft_model(folder: Path) -> Any:
    """A policy with an adapter that already changes it."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.05)
    return model


@pytest.mark.parametrize("is_given", [False, True], ids=["new_adapter", "given_adapter"])
def test_an_adapter_needs_no_second_model(is_given: bool, tiny_model: Path, tmp_path: Path):
    """The reference is the policy without its new adapter, or with the adapter that it was given: at first KL 0."""
    options = {"kl_reward_coef": 0.1, "max_steps": 2, "learning_rate": 2e-2}
    args = VLMGRPOConfig(**settings(tmp_path, **options))
    adapter = None if is_given else LoraConfig(target_modules=["q_proj", "v_proj"])
    model = peft_model(tiny_model) if is_given else str(tiny_model)
    trainer = VLMGRPOTrainer(model, by_text, args, train_dataset=image_rows(), peft_config=adapter)
    trainer.train()
    first, second = (entry["kl_in_reward"] for entry in trainer.state.log_history[:2])
    assert trainer.ref_model is None and first == 0 and abs(second) > 1e-6


def test_a_resumed_run_has_the_adapted_coefficient(tiny_model: Path, tmp_path: Path):
    """Checkpoint 3 lies in the middle of the second rollout; from there on it is the same run, bit for bit."""
    options = {
        "kl_reward_coef": 0.5,
        "kl_target": 0.1,
        "steps_per_generation": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = trained("dr_grpo", tiny_model, tmp_path, **options)
    state = json.loads((tmp_path / "checkpoint-3" / "kl_in_reward.json").read_text())
    # Two rollouts of 16 completions far below the target: twice 0.5 (1 - 0.2 * 16 / 10000).
    assert state["coefficient"] == pytest.approx(0.5 * (1 - 0.2 * 16 / 10_000) ** 2)
    resumed = build("dr_grpo", tiny_model, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    names = ("loss", "grad_norm", "kl_in_reward", "kl_in_reward_coefficient")
    logs = [[[entry.get(name) for name in names] for entry in run.state.log_history[:6]] for run in (whole, resumed)]
    assert logs[0] == logs[1] and logs[0][4][3] != 0.5
    assert differences(whole, resumed)["weights"] == 0


def test_a_fixed_coefficient_leaves_no_file(tiny_model: Path, tmp_path: Path):
    trained("dr_grpo", tiny_model, tmp_path, kl_reward_coef=0.5, save_strategy="steps", save_steps=1)
    assert not (tmp_path / "checkpoint-1" / "kl_in_reward.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_reward_coef": -0.1}, "--kl_reward_coef must be >= 0, got -0.1"),
        ({"kl_reward_coef": 0.1, "kl_target": 0.0}, "--kl_target must be above 0"),
        ({"kl_reward_coef": 0.1, "kl_estimator": "k4"}, "--kl_estimator must be one of k1, k2, k3, got 'k4'"),
        ({"kl_target": 0.1}, "--kl_target has no effect without --kl_reward_coef"),
        ({"kl_estimator": "k3"}, "--kl_estimator has no effect without --kl_reward_coef"),
        ({"kl_reward_coef": 0.1, "multi_objective_aggregation": "normalize_then_sum"}, "scales every reward by itself"),
        ({"kl_reward_coef": 0.1, "algorithm": "luffy"}, "does not go with --algorithm luffy: demonstrations"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        VLMGRPOConfig(**settings(tmp_path, **options))


def test_rloo_has_its_own(tmp_path: Path):
    with pytest.raises(ValueError, match=r"RLOO has the KL in its reward already; leave it out and use --beta 0\.1"):
        VLMRLOOConfig(**settings(tmp_path, kl_reward_coef=0.1))


@pytest.mark.multiprocess
def test_two_processes_equal_one(tiny_model: Path, tmp_path: Path):
    """Returns of tokens are normalised over those of both; completions of the ranks differ in length."""
    write_data(tmp_path)
    options = {"algorithm": "reinforce_plus_plus", "kl_reward_coef": 3.0, "kl_target": 0.1}
    one, two = (
        train(mode, "grpo", tiny_model, tmp_path, max_steps=3, save_strategy="no", **options) for mode in ("one", "ddp")
    )
    assert_equal_steps(one, two, 3)
    for first, second in zip(one[:3], two[:3], strict=True):
        for name in ("kl_in_reward", "kl_in_reward_coefficient"):
            assert second[name] == pytest.approx(first[name], abs=1e-6)
    assert abs(one[2]["kl_in_reward"]) > 1e-4
