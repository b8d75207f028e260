"""`--algorithm` and the flags that belong to it, from the command line to the trainer's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_grpo.algorithms import ALGORITHMS, algorithm_settings
from vlm_grpo.cli.train_args import UsageError, parse

QUICK = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--num_generations", "4"]
QUICK += ["--per_device_train_batch_size", "4", "--model_name_or_path", "m"]


@pytest.fixture
def jsonl(tmp_path: Path) -> list[str]:
    """Flags of a data file, which parsing does not read, and of an output folder."""
    return ["--data_file_paths", "a.jsonl", "--output_dir", str(tmp_path), *QUICK]


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_algorithm_sets_its_settings_and_other_flags_win(name: str, jsonl: list[str]):
    script, training, _ = parse([*jsonl, "--algorithm", name, "--gradient_accumulation_steps", "2"])
    assert script.trainer == ALGORITHMS[name].trainer
    for setting, value in algorithm_settings(name, accumulation=2).items():
        assert getattr(training, setting) == value, setting
    _, training, _ = parse([*jsonl, "--algorithm", name, "--beta", "0.3"])
    assert training.beta == 0.3


def test_gspo_cuts_a_rollout_into_four_updates(jsonl: list[str]):
    given = [*jsonl, "--algorithm", "gspo"]
    assert parse([*given, "--gradient_accumulation_steps", "2"])[1].steps_per_generation == 8
    assert parse([*given, "--generation_batch_size", "8"])[1].steps_per_generation == 2
    assert parse([*given, "--epsilon", "0.1"])[1].epsilon_high == 4e-4


def test_config_file_stands_between_algorithm_and_command_line(jsonl: list[str], tmp_path: Path):
    (tmp_path / "c.yaml").write_text("algorithm: grpo\nbeta: 0.2\nepsilon: 0.3\n")
    _, training, _ = parse([*jsonl, f"--config={tmp_path}/c.yaml", "--epsilon", "0.4"])
    assert (training.beta, training.epsilon, training.loss_type) == (0.2, 0.4, "grpo")


def test_unknown_and_contradictory_algorithms(jsonl: list[str]):
    with pytest.raises(UsageError, match=r"unknown algorithm 'gpro'; did you mean .*'grpo'"):
        parse([*jsonl, "--algorithm", "gpro"])
    with pytest.raises(UsageError, match="--algorithm rloo runs with --trainer rloo, not with --trainer grpo"):
        parse([*jsonl, "--algorithm", "rloo", "--trainer", "grpo"])
    with pytest.raises(UsageError, match="unknown trainer 'ppo'"):
        parse([*jsonl, "--trainer", "ppo"])


OWN = """
def halves(rewards, *, factor=0.5):
    return factor * (rewards - rewards.mean(dim=1, keepdim=True))
"""


def test_an_algorithm_from_a_file_with_its_options(jsonl: list[str], tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    name = f"{tmp_path / 'mine.py'}:halves"
    options = ["--algorithm", name, "--algorithm_options", '{"factor": 2}']
    training = parse([*jsonl, *options])[1]
    assert (training.algorithm, training.algorithm_options, training.loss_type) == (name, {"factor": 2}, "dapo")
    with pytest.raises(UsageError, match="has no option 'fctor'; it has factor"):
        parse([*jsonl, "--algorithm", name, "--algorithm_options", '{"fctor": 2}'])
    with pytest.raises(UsageError, match="has no 'thirds'; its functions are halves"):
        parse([*jsonl, "--algorithm", f"{tmp_path / 'mine.py'}:thirds"])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "class MyAlgo: pass",
            r"is a class, as for RLLaVA's @register_ppo, but not a subclass .* see 'Your own'",
        ),
        (
            "from rllava.ppo import register_ppo",
            "No module named 'rllava'; algorithms of this package do not need rllava",
        ),
    ],
)
def test_a_class_of_another_framework_is_no_algorithm(code: str, said: str, jsonl: list[str], tmp_path: Path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UsageError, match=said):
        parse([*jsonl, "--algorithm", f"{tmp_path / 'mine.py'}:MyAlgo"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--algorithm opo --scale_rewards batch", "--scale_rewards has no effect with --algorithm opo"),
        ("--algorithm gmpo --epsilon 0.3", "--epsilon has no effect with --algorithm gmpo"),
        ("--algorithm opo --num_iterations 2", "opo is exactly on-policy: one update for each rollout, got 2"),
        ("--algorithm_options {}", "--algorithm_options has no effect without --algorithm"),
        ("--dynamic_sampling_reward accuracy", "--dynamic_sampling_reward has no effect without --dynamic_sampling"),
        ("--dynamic_sampling 2 --streaming true --max_steps 3", "--dynamic_sampling needs random access to rows"),
    ],
)
def test_flags_that_would_do_nothing_or_contradict(words: str, message: str, jsonl: list[str]):
    with pytest.raises(UsageError, match=message):
        parse([*jsonl, *words.split()])


def test_a_reference_model_may_follow_the_policy_where_its_kl_is_in_the_reward(jsonl: list[str]):
    assert parse([*jsonl, "--beta", "0", "--sync_ref_model", "true", "--kl_reward_coef", "0.1"])[1].sync_ref_model
    with pytest.raises(UsageError, match="--sync_ref_model has no effect without --beta above 0 or --kl_reward_coef"):
        parse([*jsonl, "--beta", "0", "--sync_ref_model", "true"])


def test_dynamic_sampling_can_be_switched_off_and_on(jsonl: list[str]):
    assert parse([*jsonl, "--algorithm", "dapo"])[1].dynamic_sampling == 10
    assert parse([*jsonl, "--algorithm", "dapo", "--dynamic_sampling", "0"])[1].dynamic_sampling == 0
    training = parse([*jsonl, "--dynamic_sampling", "3", "--dynamic_sampling_reward", "accuracy"])[1]
    assert (training.dynamic_sampling, training.dynamic_sampling_reward) == (3, "accuracy")
