"""Every value of every flag of `vlm-grpo train`: taken, or refused in a sentence, and all that is wrong at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_grpo.cli.args import known_flags
from vlm_grpo.cli.train import main
from vlm_grpo.cli.train_args import UsageError, parse, validate_output_dir
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig

QUICK = {"use_cpu": "true", "bf16": "false", "report_to": "none", "num_generations": "4"}
QUICK |= {"per_device_train_batch_size": "4", "model_name_or_path": "m", "data_file_paths": "a.jsonl"}
WRONG = {
    "num_generations": ("0", "1", "2.5"),
    "seed": ("-1", "99999999999"),
    **dict.fromkeys(("num_train_epochs", "temperature", "tool_time_limit"), ("0", "-1", "nan", "inf")),
    **dict.fromkeys(("epsilon", "beta", "learning_rate"), ("-0.1", "nan", "inf", "x")),
    **dict.fromkeys(("num_iterations", "max_turns", "max_completion_length", "max_prompt_length"), ("0", "-3")),
    **dict.fromkeys(("max_pixels", "min_pixels", "max_image_tokens", "max_tokens_per_forward"), ("0", "1e3")),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"), ("0",)),
    "top_p": ("0", "1.1", "nan"),
    "max_steps": ("0", "-2"),
    "val_split_ratio": ("2", "1", "-0.1", "nan"),
    "val_freq": ("-2", "-0.5", "inf"),
    "lora_r": ("0",),
    "lora_dropout": ("1", "-0.1"),
    "kl_reward_coef": ("nan", "-inf"),
    **dict.fromkeys(("loss_type", "scale_rewards", "importance_sampling_level", "cache_implementation"), ("nope", "")),
    "remove_unused_columns": ("true",),
    **dict.fromkeys(("multi_objective_aggregation", "attn_implementation"), ("nope",)),
    **dict.fromkeys(("torch_compile_backend", "torch_compile_mode", "optim_args"), ("nope",)),
    "report_to": ("wandbb",),
    "reward_weights": ("nan",),
    "bf16": ("maybe",),
    "shared_prefix": ("maybe",),
}


def words(folder: Path, **flags: str) -> list[str]:
    """Return a command line; each flag with its value in one word, as '-1' alone looks like a flag."""
    given = {**QUICK, "output_dir": str(folder), **flags}
    return [f"--{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_out_of_its_range_is_refused_by_name(name: str, value: str, tmp_path: Path):
    with pytest.raises(UsageError, match=rf"wrong flags:[\s\S]*--{name}\b.*(must be|invalid|expected)"):
        parse(words(tmp_path, **{name: value}))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = {"trainer": "grpp", "seed": "-1", "beta": "nan", "max_steps": "x", "loss_typ": "grpo", "lora_alpha": "8"}
    (tmp_path / "c.yaml").write_text("temperature: 0\ntool_format: morse\nloud: true\n")
    assert main([*words(tmp_path, **wrong, config=str(tmp_path / "c.yaml")), "stray"]) == 2
    said = capsys.readouterr().err
    for part in (
        "unknown trainer 'grpp'",
        "--seed -1: must be a whole number of at least 0 and at most 4294967295",
        "--beta nan: must be a finite number of at least 0",
        "--max_steps x: must be a whole number",
        "unknown flag --loss_typ; did you mean --loss_type",
        "--lora_alpha has no effect without --use_peft",
        "--temperature 0: must be a finite number above 0",
        "--tool_format morse: must be one of auto, native",
        "unknown flag --loud",
        "unexpected argument 'stray'",
    ):
        assert said.count(part) == 1, said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--algorithm nope", "unknown algorithm 'nope'"),
        ("--trainer", "--trainer: must be followed by one of grpo, rloo"),
        ("--config none.yaml", "--config: no such file none.yaml"),
        ("--algorithm gspo --gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: must be a whole"),
        ("--model_init_kwargs [1]", r"--model_init_kwargs \[1\]: must be a JSON object"),
        ("--num_generations 3", r"the completions of a rollout must form whole groups of --num_generations 3, got "),
    ],
)
def test_one_mistake_is_one_sentence(given: str, said: str, tmp_path: Path):
    with pytest.raises(UsageError, match=rf"^wrong flags:\n  {said}.*$"):
        parse([*words(tmp_path), *given.split()])


def test_a_range_of_rewards_has_two_ends(tmp_path: Path):
    for value, said in (("1", "expected 2 arguments"), ("1 x", "must be a number"), ("1 0", "the lower one first")):
        with pytest.raises(UsageError, match=rf"--reward_clip_range.*{said}"):
            parse([*words(tmp_path, trainer="rloo"), "--reward_clip_range", *value.split()])
    given = [*words(tmp_path, trainer="rloo"), "--reward_clip_range", "-1", "0.5"]
    assert tuple(parse(given)[1].reward_clip_range) == (-1, 0.5)
    with pytest.raises(ValueError, match=r"--reward_clip_range 1 0: must be two numbers, the lower one first"):
        VLMRLOOConfig(str(tmp_path), use_cpu=True, bf16=False, reward_clip_range=(1, 0))
    assert VLMRLOOConfig(str(tmp_path), use_cpu=True, bf16=False, reward_clip_range=(0, 1)).reward_clip_range == (0, 1)


def test_limits_themselves_are_allowed(tmp_path: Path):
    allowed = {"top_p": "1", "learning_rate": "0", "seed": "0", "val_split_ratio": "0.5", "max_grad_norm": "0"}
    training = parse(words(tmp_path, **allowed))[1]
    assert (training.top_p, training.learning_rate, training.seed) == (1.0, 0.0, 0)


def test_val_freq_minus_one_is_never(tmp_path: Path):
    script = parse([*words(tmp_path, val_split_ratio="0.5"), "--val_freq", "-1"])[0]
    assert script.val_freq == 0


def test_one_generation_is_for_algorithms_that_say_so(tmp_path: Path):
    flags = {"num_generations": "1", "algorithm": "reinforce_plus_plus"}
    assert parse(words(tmp_path, **flags))[1].num_generations == 1


@pytest.mark.parametrize("kind", [VLMGRPOConfig, VLMRLOOConfig])
def test_a_configuration_refuses_the_same(kind: type, tmp_path: Path):
    with pytest.raises(ValueError, match=r"--seed -1: must be[\s\S]*--temperature 0: must be"):
        kind(str(tmp_path), use_cpu=True, bf16=False, seed=-1, temperature=0)


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    assert "must name a folder" in validate_output_dir(" ")[0]
    assert f"{tmp_path}/file is a file" in validate_output_dir(str(tmp_path / "file"))[0]
    assert f"{tmp_path}/file is a file" in validate_output_dir(str(tmp_path / "file" / "out"))[0]
    assert validate_output_dir(str(tmp_path / "new" / "out")) == [] == validate_output_dir(None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert f"{tmp_path} is read-only" in validate_output_dir(str(tmp_path / "new"))[0]


# Flags that change the process itself (a launcher's file, a backend, the precision of all matrices) are not drawn.
REACHING_OUT = {"config", "help", "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"}
REACHING_OUT |= {"tf32", "use_cpu", "ddp_backend"}
FLAGS = sorted((known_flags("grpo") | known_flags("rloo")) - REACHING_OUT)
VALUES = st.one_of(
    st.sampled_from(["0", "1", "-1", "nan", "inf", "1e400", "true", "no", "", "{}", "[1]", "none", "steps", "2.5"]),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), max_size=8),
)


@pytest.fixture
def environment() -> Iterator[None]:
    """Put the environment back: transformers writes what some flags say into it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("environment")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.dictionaries(st.sampled_from(FLAGS), VALUES, max_size=4),
    wrong=st.dictionaries(st.sampled_from(sorted(WRONG)), st.integers(0, 9), max_size=3),
)
def test_no_value_of_a_flag_ends_in_a_traceback(drawn: dict[str, str], wrong: dict[str, int], tmp_path: Path):
    wrong = {name: WRONG[name][which % len(WRONG[name])] for name, which in wrong.items()}
    try:
        parse(words(tmp_path / "out", **{**drawn, **wrong}))
    except UsageError as error:
        assert all(f"--{name}" in str(error) for name in wrong), (wrong, str(error))
    else:
        assert not wrong
