"""Algorithms inside a training: the advantages that the loss sees, and that packing changes nothing."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.training import differences, image_rows, settings
from vlm_grpo.algorithms import ALGORITHMS, advantages, register_algorithm
from vlm_grpo.algorithms.token_mask import covariances
from vlm_grpo.evaluation.backends.hf import generate_greedy
from vlm_grpo.rewards.adapter import batch_reward
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

OWN = [name for name, config in ALGORITHMS.items() if config.advantage_fn is not None]
SAME_LENGTH = {"generation_kwargs": {"min_new_tokens": 8}}


# What settings for large models need to run on completions of 8 tokens that never end and on 16 rows.
TINY = {"dapo": {"mask_truncated_completions": False, "steps_per_generation": 2}}


def by_text(completions: list, **columns: Any) -> list[float]:
    """Different for different completions, of random tokens as of greedy ones."""
    return [(sum(map(ord, completion[0]["content"])) % 11) / 10 for completion in completions]


def build(name: str, model: Path, folder: Path, reward: Any = by_text, **options: Any) -> Any:
    kinds = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
    trainer, config = kinds[ALGORITHMS[name].trainer]
    chosen = settings(folder, **{"per_device_train_batch_size": 8, "max_steps": 1, **TINY.get(name, {}), **options})
    args = config.of(name, chosen.pop("output_dir"), **chosen)
    rows = image_rows(16)
    if ALGORITHMS[name].family.needs_demonstrations:
        rows = rows.add_column("expert", [["1. 2. 3"]] * len(rows))
    return trainer(str(model), reward, args, train_dataset=rows)


def trained(*args: Any, **options: Any) -> Any:
    made = build(*args, **options)
    made.train()
    return made


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains(name: str, tiny_model: Path, tmp_path: Path):
    trainer = trained(name, tiny_model, tmp_path)
    assert trainer.state.log_history[0]["grad_norm"] > 0


def rollout_of(trainer: Any) -> tuple[dict[str, Any], list[float], list[float]]:
    """Train, and give what the first loss saw, with the logged rewards and advantages of the rollout in its order."""
    seen: list[dict[str, Any]] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), compute(model, inputs))[1]
    trainer.train()
    return seen[0], list(trainer._logs["rewards"]["by_text"]), list(trainer._logs["advantages"])


@pytest.mark.parametrize("name", sorted(set(OWN) - {"remax"}))
def test_the_loss_sees_the_algorithms_advantages(name: str, tiny_model: Path, tmp_path: Path):
    """Computed anew from the logged rewards; all completions have eight tokens. What is logged is what was used."""
    inputs, rewards, logged = rollout_of(build(name, tiny_model, tmp_path, **SAME_LENGTH))
    wants = "lengths" in inspect.signature(ALGORITHMS[name].advantage_fn).parameters
    expected = advantages(name, rewards, 4, **({"lengths": [8] * 8} if wants else {}))
    assert expected.abs().max() > 0
    assert torch.allclose(torch.tensor(logged), expected, atol=1e-5)
    assert torch.allclose(inputs["advantages"].sort().values, expected.sort().values, atol=1e-5)


def test_remax_compares_with_the_greedy_completion(tiny_model: Path, tmp_path: Path):
    trainer = build("remax", tiny_model, tmp_path)
    processed = trainer.encoder.counters
    inputs, rewards, logged = rollout_of(trainer)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    processor = AutoProcessor.from_pretrained(tiny_model)
    baselines = {}
    for row in image_rows(16):
        (greedy,) = generate_greedy(model, processor, [row], max_completion_length=8)
        (baselines[row["prompt"][0]["content"]],) = by_text([[{"content": greedy.text}]])
    asked = [prompt[-1]["content"][-1]["text"] for prompt in trainer._logs["prompt"]]
    expected = [reward - baselines[question] for reward, question in zip(rewards, asked, strict=True)]
    assert logged == pytest.approx(expected, abs=1e-6)
    assert sorted(inputs["advantages"].tolist()) == pytest.approx(sorted(expected), abs=1e-6)
    assert processed.decoded == 2  # the greedy completions cost no image


def test_remax_scores_greedy_turns_where_rewards_read_whole_turns(tiny_model: Path, tmp_path: Path):
    """Rewards of this package are given the assistant's turn: of the baseline that is the greedy one."""
    texts: list[str] = []

    def by_length(completion: str, record: Any) -> float:
        texts.append(completion)
        return float(len(completion))

    build("remax", tiny_model, tmp_path, reward=batch_reward("by_length", by_length)).train()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    greedy = {each.text for each in generate_greedy(model, processor, image_rows(16), max_completion_length=8)}
    assert len(texts) == 8 + 2 and set(texts[8:]) <= greedy and not set(texts[:8]) & set(texts[8:])


PACKED = [name for name, config in ALGORITHMS.items() if name != "bnpo" and config.updates_per_rollout == 1]


@pytest.mark.parametrize("name", PACKED)
def test_an_optimizer_step_does_not_depend_on_its_micro_batches(name: str, tiny_model: Path, tmp_path: Path):
    """Except bnpo's, the mean of each micro-batch by its name. Rollouts that are cut into updates come below."""
    whole = trained(name, tiny_model, tmp_path, **SAME_LENGTH)
    parts = trained(
        name, tiny_model, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **SAME_LENGTH
    )
    assert differences(whole, parts)["weights"] < 1e-5
    norms = [run.state.log_history[0]["grad_norm"] for run in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("name", [name for name, config in ALGORITHMS.items() if config.updates_per_rollout > 1])
def test_updates_do_not_depend_on_their_micro_batches(name: str, tiny_model: Path, tmp_path: Path):
    """Two updates of a rollout, each of one or of two micro-batches."""
    options = {"max_steps": 2, "learning_rate": 1e-2, "algorithm_options": OPTIONS.get(name), **SAME_LENGTH}
    whole = trained(name, tiny_model, tmp_path, steps_per_generation=2, **options)
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    parts = trained(name, tiny_model, tmp_path, **halves, **options)
    assert differences(whole, parts)["weights"] < 1e-4
    norms = [[entry["grad_norm"] for entry in run.state.log_history[:2]] for run in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and norms[0][0] != norms[0][1]


OPTIONS = {"clip_cov": {"share": 0.2, "low": 0.0}, "kl_cov": {"share": 0.2}, "gmpo": {"gmpo_clip": 0.01}}


@pytest.mark.parametrize(("name", "options"), OPTIONS.items())
def test_options_of_an_algorithm_reach_its_loss(name: str, options: dict, tiny_model: Path, tmp_path: Path):
    settings = {"max_steps": 2, "learning_rate": 1e-2, "steps_per_generation": 2, **SAME_LENGTH}
    runs = [trained(name, tiny_model, tmp_path, algorithm_options=given, **settings) for given in (None, options)]
    assert differences(*runs)["weights"] > 1e-4


def test_tokens_are_selected_among_the_whole_rollout(tiny_model: Path, tmp_path: Path):
    """A fifth of 8 x 8 tokens, those of highest covariance; the log-probabilities are those before the first step."""
    trainer = build(
        "kl_cov",
        tiny_model,
        tmp_path,
        num_iterations=2,
        steps_per_generation=1,
        algorithm_options={"share": 0.2},
        **SAME_LENGTH,
    )
    inputs, _, _ = rollout_of(trainer)
    values = covariances(inputs["advantages"][:, None], inputs["old_per_token_logps"], inputs["completion_mask"])
    assert inputs["token_mask"].sum() == 12
    assert values[inputs["token_mask"]].min() >= values[~inputs["token_mask"]].max()


def test_a_selected_token_without_advantage_keeps_its_kl(tiny_model: Path, tmp_path: Path):
    """One prompt has equal rewards; KL-Cov selects tokens of its completions, so that these must not be skipped."""

    def of_one_prompt(completions: list, **columns: Any) -> list[float]:
        return [*by_text(completions[:4]), *([0.5] * (len(completions) - 4))]

    options = {"num_iterations": 2, "steps_per_generation": 1, "max_steps": 2, "learning_rate": 1e-2, **SAME_LENGTH}
    options |= {"algorithm_options": {"share": 0.9, "kl_cov_coef": 10.0}}
    runs = [
        trained("kl_cov", tiny_model, tmp_path, of_one_prompt, shared_prefix=way, **options) for way in ("on", "off")
    ]
    norms = [run.state.log_history[1]["grad_norm"] for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "remax"])
def test_one_completion_of_a_prompt_is_enough(name: str, tiny_model: Path, tmp_path: Path):
    trainer = trained(name, tiny_model, tmp_path, num_generations=1, per_device_train_batch_size=4)
    assert trainer.num_generations == 1 and trainer.state.log_history[0]["grad_norm"] > 0


def test_gpg_takes_no_ratio(tiny_model: Path, tmp_path: Path):
    """In the second iteration the policy has moved: a ratio would be logged as clipped, with so small an epsilon."""
    options = {"num_iterations": 2, "max_steps": 2, "epsilon": 1e-6, "learning_rate": 1e-2}
    clipped = {}
    for name in ("gpg", "grpo_passk"):
        trainer = trained(name, tiny_model, tmp_path, **options)
        clipped[name] = trainer.state.log_history[1]["clip_ratio/region_mean"]
    assert clipped["gpg"] == 0 and clipped["grpo_passk"] > 0


def test_rloo_in_the_grpo_trainer_is_trls_rloo(tiny_model: Path, tmp_path: Path):
    """Two updates of a rollout, so that the ratio of whole completions counts."""
    options = {"max_steps": 2, "num_iterations": 2, "beta": 0.0, "learning_rate": 1e-2, **SAME_LENGTH}
    runs = [trained(name, tiny_model, tmp_path, **options) for name in ("rloo", "rloo_grpo")]
    norms = [[entry["grad_norm"] for entry in run.state.log_history[:2]] for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0][0] != norms[0][1]
    assert differences_of_weights(*runs) < 1e-4  # steps of 1e-2


def differences_of_weights(one: Any, other: Any) -> float:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_an_own_loss_is_averaged_as_trls(loss_type: str, tiny_model: Path, tmp_path: Path):
    """The plain ratio as an objective, against TRL's loss with a clip that nothing reaches, with a KL term."""
    objective = lambda inputs: -inputs.advantages * (inputs.logps - inputs.old_logps).exp()  # noqa: E731
    name = f"plain_{loss_type}"
    if name not in ALGORITHMS:
        register_algorithm(name, objective=objective, settings={"scale_rewards": "group"})
    options = {
        "loss_type": loss_type,
        "beta": 0.1,
        "max_steps": 2,
        "num_iterations": 2,
        "per_device_train_batch_size": 4,
    }
    options |= {"gradient_accumulation_steps": 2, "steps_per_generation": 2, "use_bias_correction_kl": False}
    own = trained(name, tiny_model, tmp_path, **options)
    trl = trained("grpo", tiny_model, tmp_path, epsilon=100.0, **options)
    del ALGORITHMS[name]
    for one, other in zip(own.state.log_history[:2], trl.state.log_history[:2], strict=True):
        for key in ("loss", "grad_norm", "kl", "entropy"):
            assert one[key] == pytest.approx(other[key], abs=1e-5), key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"num_generations": 1}, "--num_generations 1: must be a whole number of at least 2"),
        ("opo", {"num_iterations": 2}, "--algorithm opo is exactly on-policy: one update for each rollout, got 2"),
        ("opo", {"steps_per_generation": 3}, "exactly on-policy: one update for each rollout, got 3"),
        ("kl_cov", {"steps_per_generation": 1}, "--algorithm kl_cov needs at least 2 updates for each rollout, got 1"),
        ("gmpo", {"delta": 2.0}, "--delta 2.0 has no effect: --algorithm gmpo has its own loss"),
        ("kl_cov", {"loss_type": "bnpo"}, "--algorithm kl_cov takes --loss_type grpo, dr_grpo, dapo, got bnpo"),
        ("gmpo", {"algorithm_options": {"clip": 1}}, "--algorithm gmpo has no option 'clip'; it has gmpo_clip"),
        ("gmpo", {"algorithm_options": "0.4"}, "--algorithm_options must be a JSON object, got '0.4'"),
        ("opo", {"multi_objective_aggregation": "normalize_then_sum"}, "has no effect: --algorithm opo has its own"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        VLMGRPOConfig.of(name, **{**settings(tmp_path), **options})


def test_a_configuration_of_an_algorithm_has_its_settings(tmp_path: Path):
    options = {"gradient_accumulation_steps": 2, "epsilon": 0.1, "bf16": False, "use_cpu": True}
    args = VLMGRPOConfig.of("gspo", str(tmp_path), **options)
    assert args.algorithm == "gspo" and args.importance_sampling_level == "sequence"
    assert args.steps_per_generation == 8 and args.epsilon == 0.1
    with pytest.raises(ValueError, match="--algorithm rloo runs with --trainer rloo, not with --trainer grpo"):
        VLMGRPOConfig(str(tmp_path), algorithm="rloo", bf16=False, use_cpu=True)
