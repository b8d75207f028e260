"""docs/migration.md is what its tables say, and what each of its lines says is what happens."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from docs.gen_migration import page
from vlm_grpo.cli.args import known_flags
from vlm_grpo.cli.migration import FLAGS, RLLAVA, VALUES
from vlm_grpo.cli.train_args import UsageError, parse
from vlm_grpo.cli.translation import translate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migration.md"
KNOWN = known_flags("grpo") | known_flags("rloo")
READ = {key: change for key, change in RLLAVA.items() if change.read}
CHANGES = {f"--{name}": change for table in FLAGS.values() for name, change in table.items()}
QUICK = {"use_cpu": "true", "report_to": "none", "model_name_or_path": "m", "data_file_paths": "a.jsonl"}


def words(folder: Path, *given: str, **flags: str) -> list[str]:
    return [*(f"--{name}={value}" for name, value in {**QUICK, "output_dir": str(folder), **flags}.items()), *given]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("key", list(READ))
def test_a_key_that_is_read_is_a_flag_of_the_page(key: str):
    """What a change writes is what its column says, a flag that there is, with the value that was given."""
    change = RLLAVA[key]
    done = translate([f"{key}={change.example}"], KNOWN)
    assert done.problems == [] and done.notes
    for word in done.words:
        name, _, value = word[2:].partition("=")
        assert not word.startswith("--") or (name in KNOWN and f"--{name}" in change.new)
        assert not value or value == change.example


@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if change.read])
def test_a_flag_that_is_read_is_a_flag_of_the_page(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    change = CHANGES[name]
    done = translate([name, change.example], KNOWN)
    assert done.problems == [] and done.notes
    assert done.words in ([], [f"{change.new}={change.example}"])
    assert translate([f"{name}={change.example.capitalize()}"], KNOWN).problems == []


@pytest.mark.parametrize("name", [*(key for key in RLLAVA if key not in READ), *CHANGES])
def test_what_is_refused_says_what_to_write(name: str):
    change = RLLAVA.get(name) or CHANGES[name]
    if change.read is None:
        given = [name, "1"] if name.startswith("--") else [f"{name}=1" if "." in name else f"{name}.x=1"]
        done = translate(given, KNOWN)
        assert not done.words and change.new in done.problems[0] and change.note in done.problems[0]
        assert set(re.findall(r"--(\w+)", change.new)) <= {*KNOWN, "config_file", "num_processes", "num_machines"}


@pytest.mark.parametrize(("flag", "value"), list(VALUES))
def test_a_value_of_another_system(flag: str, value: str):
    new = VALUES[(flag, value)][1]
    for given in ([f"--{flag}={value}"], [f"--{flag.replace('_', '-')}", value]):
        assert translate(given, KNOWN).words == ([f"--{flag}={new}"] if new else [])


def test_the_command_of_rllavas_guide_is_read_in_full(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Its template, with a nested file as its guide prints one; words win over the file."""
    (tmp_path / "config.yaml").write_text(
        "data:\n  train_files: your_org/your_dataset\n  format_prompt: ./my_task.jinja\n  video_key: null\n"
        "reward:\n  reward_function: ./my_task.py:compute_score\n  reward_type: batch\n"
        "algorithm:\n  adv_estimator: grpo\n  policy_loss_fn: GSPO\n"
        "trainer:\n  logger: [console, tensorboard]\n  experiment_name: ${oc.env:NO_SUCH_VARIABLE,mine}\n"
    )
    given = [
        *(f"config={tmp_path}/config.yaml", "data.train_files=org/dataset@train", "data.prompt_key=problem"),
        *("data.answer_key=answer", "data.image_key=images", "actor.model.model_path=m", "rollout.n=4"),
        *(f"trainer.outputs_dir={tmp_path}/out", "trainer.val_freq=-1", "trainer.val_before_train=false"),
    ]
    script, training, model = parse([*given, "--use_cpu"])
    assert (script.dataset_name, script.format_prompt) == ("org/dataset@train", "./my_task.jinja")
    assert (script.prompt_key, script.answer_key, script.image_key) == ("problem", "answer", "images")
    assert (script.reward_funcs, script.val_freq, script.val_before_train) == (["./my_task.py:compute_score"], 0, False)
    assert (training.algorithm, training.num_generations, training.run_name) == ("gspo", 4, "mine")
    assert (training.report_to, training.output_dir) == (["tensorboard"], f"{tmp_path}/out")
    assert model.model_name_or_path == "m"
    assert "rollout.n as --num_generations=4 (RLLaVA)" in caplog.text


def test_all_that_cannot_be_read_is_said_at_once(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(
        "actor:\n  fsdp:\n    offload_params: true\ncritic: null\ntrainer:\n  nnodes: 2\n"
    )
    given = ["data.val_files=x/y@test", "algorithm.nonsense=1", "--adv_estimator", "grpo", "--max_new_tokens", "8"]
    with pytest.raises(UsageError) as caught:
        parse(words(tmp_path, *given, config=str(tmp_path / "config.yaml")))
    lines = str(caught.value).splitlines()
    for part in (
        "actor.fsdp.offload_params=True: option of RLLaVA; here: configs/accelerate/fsdp2.yaml",
        "trainer.nnodes=2: option of RLLaVA; here: `accelerate launch --num_processes N",
        "data.val_files=x/y@test: option of RLLaVA; here: --val_split_ratio, or `vlm-grpo evaluate`",
        "algorithm.nonsense=1: unknown key",
        "unknown flag --adv_estimator; RLLaVA's algorithm.adv_estimator is --algorithm",
        "--max_new_tokens 8: option of the VQA guide; here: --max_completion_length",
    ):
        assert sum(line.strip().startswith(part) for line in lines) == 1, part
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--is_reward_customized_from_vlm_module false", "`--reward_method auto` uses the type of the answer"),
        ("reward.reward_type=env", "the rewards of an environment are enabled by --environment"),
        ("actor.optim.strategy=lion", "--optim NAME, with an optimizer name"),
        ("data.train_files=a/b,c/d", "several data sets: use one --dataset_name"),
        ("trainer.experiment_name=${trainer.project_name}", "references to other keys are not supported"),
        ("--model_id x --num_rollouts none", "--num_generations none: must be a whole number"),
    ],
)
def test_a_value_that_means_nothing_here_is_refused(given: str, said: str, tmp_path: Path):
    with pytest.raises(UsageError, match=said.replace("$", r"\$")):
        parse(words(tmp_path, *given.split()))


def test_old_flags_in_a_flat_file_and_on_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "c.yaml").write_text("train_steps: 7\nuse_lora: true\n")
    given = [
        "--target_modules",
        "q_proj",
        "v_proj",
        "--num_rollouts",
        "4",
        "--bf16",
        "--dataset-name",
        "this_is_not_used",
    ]
    with caplog.at_level(logging.WARNING):
        script, training, model = parse(words(tmp_path, *given, config=str(tmp_path / "c.yaml")))
    assert (training.max_steps, training.num_generations, training.bf16) == (7, 4, True)
    assert (model.use_peft, model.lora_target_modules, script.dataset_name) == (True, ["q_proj", "v_proj"], None)
    for part in ("--train_steps as --max_steps=7 (Fleet)", "--dataset_name this_is_not_used as nothing (VLM-R1)"):
        assert part in caplog.text


def test_where_tensorboard_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    parse(words(tmp_path, "--logging_dir", "logs/here"))
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs/here"


@pytest.mark.parametrize(
    "flag", ["bf16", "ddp_find_unused_parameters", "gradient_checkpointing", "use_peft", "disable_tqdm"]
)
def test_a_flag_of_two_values_stands_alone(flag: str, tmp_path: Path):
    parts = parse(words(tmp_path, f"--{flag}", "--logging_steps", "1"))
    assert next(getattr(part, flag) for part in parts if hasattr(part, flag)) is True


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *(("GRPO", "grpo"), ("DAPO", "dapo"), ("REINFORCE++", "reinforce_plus_plus"), ("DR-GRPO", "dr_grpo")),
        *(("GRPO-PassK", "grpo_passk"), ("CLIP-COV", "clip_cov"), ("GAE", "ppo"), ("remax", "remax")),
        ("REINFORCE++-baseline", "reinforce_plus_plus_baseline"),
    ],
)
def test_algorithms_are_known_in_any_case_and_punctuation(given: str, name: str, tmp_path: Path):
    assert parse(words(tmp_path, "--algorithm", given))[1].algorithm == name
    (tmp_path / "c.yaml").write_text(f"algorithm: {given}\n")
    assert parse(words(tmp_path, config=str(tmp_path / "c.yaml")))[1].algorithm == name


@pytest.mark.parametrize(
    "given", ["--val_freq -1", "--val_freq=-1", "--val_freq 0", "--val_freq -1 --val_before_train false"]
)
def test_never_to_evaluate_needs_no_held_out_rows(given: str, tmp_path: Path):
    assert parse(words(tmp_path, *given.split()))[0].val_freq == 0.0
    with pytest.raises(UsageError, match="--val_freq has no effect without --val_split_ratio"):
        parse(words(tmp_path, "--val_freq", "1"))
