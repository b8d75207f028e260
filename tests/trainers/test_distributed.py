"""Two real processes on the CPU, with DDP, DeepSpeed ZeRO-3 and FSDP2, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.training import picture

ROOT = Path(__file__).resolve().parents[2]
REWARD = (
    "def by_tokens(completion_ids, completions, **columns): return [sum(ids) % 11 / 11 for ids in completion_ids]\n"
)
COMPARED = ("loss", "grad_norm", "reward", "reward_std", "kl", "entropy", "completions/mean_length")
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
DEEPSPEED_ON_CPU = {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
FSDP_ON_CPU = {"TEST_FSDP_ON_CPU": "true"}  # see tests/support/scripted.py
CONFIGURED = ["--accelerator_config", '{"use_configured_state": true}']
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
PLAIN = ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]

ALL_IMAGES = (["0.png", "1.png"], ["2.png"], ["3.png"], ["1.png"])  # of four prompts, two in a step
TEXT_ON_ONE_RANK = (["0.png"], [], [], ["3.png"])


def accelerate(config: str, *options: str) -> list[str]:
    path = f"configs/accelerate/{config}.yaml"
    return ["accelerate.commands.launch", "--config_file", path, *PLAIN, *options, "--module"]


# How each run is started: launcher, environment, flags.
MODES: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "one": ([], ON_CPU, ["--use_cpu", "true"]),
    "ddp": (TORCHRUN, ON_CPU, ["--use_cpu", "true"]),
    "ddp.yaml": (accelerate("ddp"), ON_CPU, ["--use_cpu", "true"]),
    "zero2.yaml": (accelerate("zero2"), DEEPSPEED_ON_CPU, []),
    "zero3": (
        TORCHRUN,
        {**DEEPSPEED_ON_CPU, "ACCELERATE_USE_DEEPSPEED": "true"},
        ["--deepspeed", "configs/deepspeed/zero3.json"],
    ),
    "zero3.yaml": (accelerate("zero3"), DEEPSPEED_ON_CPU, []),
    "fsdp": (TORCHRUN, FSDP_ON_CPU, [*CONFIGURED, "--fsdp"]),
    "fsdp2.yaml": (accelerate("fsdp2"), FSDP_ON_CPU, CONFIGURED),
    "fsdp2.yaml sharded": (
        accelerate("fsdp2", "--fsdp_state_dict_type", "SHARDED_STATE_DICT"),
        FSDP_ON_CPU,
        CONFIGURED,
    ),
}


def write_data(folder: Path, rows: tuple = ALL_IMAGES) -> None:
    """Four prompts, no two alike."""
    (folder / "reward.py").write_text(REWARD)
    with (folder / "a.jsonl").open("w") as file:
        for number, images in enumerate(rows):
            picture(number, height=56 + 28 * number).save(folder / f"{number}.png")
            question = "<image>" * len(images) + "Which?" + " please" * number
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": str(number)}]
            file.write(json.dumps({"id": number, "image": images, "conversations": turns}) + "\n")


def flags(mode: str, trainer: str, model: Path, folder: Path, **options: object) -> list[str]:
    processes = 1 if mode == "one" else 2
    return [
        *("--trainer", trainer, "--model_name_or_path", str(model), "--output_dir", str(folder / mode)),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        *("--data_file_paths", str(folder / "a.jsonl"), "--image_folders", str(folder), "--num_generations", "4"),
        *("--reward_funcs", f"{folder}/reward.py:by_tokens", "--max_completion_length", "8"),
        *("--per_device_train_batch_size", str(8 // processes), "--logging_steps", "1", "--learning_rate", "1e-3"),
        *("--report_to", "none", "--bf16", "false", "--beta", "0.1"),
        *("--shuffle_dataset", "false"),
        *MODES[mode][2],
    ]


def train(mode: str, trainer: str, model: Path, folder: Path, **options: object) -> list[dict]:
    """The log of a run over the same eight completions a step."""
    launcher = MODES[mode][0]
    words = flags(mode, trainer, model, folder, **options)
    command = [sys.executable, "-m", *launcher, "tests.support.scripted", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(mode), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / mode / "trainer_state.json").read_text())["log_history"]


def environment(mode: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "DS_", "FSDP"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return {**known, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **MODES[mode][1]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters of a saved model, as users load it; every key of the file fits."""
    from transformers import AutoModelForImageTextToText

    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_equal_steps(one: list[dict], two: list[dict], steps: int) -> None:
    for first, second in zip(one[:steps], two[:steps], strict=True):
        for name in COMPARED:
            assert second[name] == pytest.approx(first[name], abs=1e-5, rel=1e-5), (name, first["step"])


@pytest.mark.multiprocess
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
@pytest.mark.parametrize("rows", [ALL_IMAGES, TEXT_ON_ONE_RANK], ids=["images", "text_on_one_rank"])
def test_two_processes_equal_one(rows: tuple, trainer: str, tiny_model: Path, tmp_path: Path):
    """Also where a process has no image while the other has one: its vision tower runs all the same."""
    write_data(tmp_path, rows)
    options = {"max_steps": 3, "save_strategy": "no"}
    one = train("one", trainer, tiny_model, tmp_path, **options)
    expected = weights(tmp_path / "one")
    assert len(one) == 4 and all(entry["grad_norm"] > 1e-3 and entry["reward_std"] > 0.1 for entry in one[:3])
    # FSDP2 sees rows that all have images in the test of adapters.
    for mode in ("ddp", "zero3", "fsdp2.yaml")[: 2 if rows is ALL_IMAGES else 3]:
        assert_equal_steps(one, train(mode, trainer, tiny_model, tmp_path, **options), 3)
        saved = weights(tmp_path / mode)
        assert max((saved[name] - expected[name]).abs().max() for name in expected) < 1e-4  # a step moves by 1e-3


ALGORITHMS = {
    "remax": {},  # greedy completions of each process's prompts, with their rewards
    "reinforce_plus_plus": {},  # means over the tokens of all processes
    "kl_cov": {"num_iterations": 2, "steps_per_generation": 1, "algorithm_options": '{"share": 0.2}'},
    "dapo": {"steps_per_generation": 1, "mask_truncated_completions": False, "dynamic_sampling": 2},
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_on_two_processes_equal_one(name: str, tiny_model: Path, tmp_path: Path):
    write_data(tmp_path)
    options = {"algorithm": name, "max_steps": 3, "save_strategy": "no", **ALGORITHMS[name]}
    one = train("one", "grpo", tiny_model, tmp_path, **options)
    two = train("ddp", "grpo", tiny_model, tmp_path, **options)
    for first, second in zip(one[:3], two[:3], strict=True):
        assert first["grad_norm"] > 1e-3
        for key in ("loss", "grad_norm", "entropy"):
            assert second[key] == pytest.approx(first[key], abs=1e-5, rel=1e-4), (key, first["step"])


@pytest.mark.multiprocess
def test_adapter_is_switched_off_for_the_reference(tiny_model: Path, tmp_path: Path):
    """In every distributed mode the KL is that of one process; tests/support/scripted.py sees no second model.

    Dropout, which every process draws for itself, is off. The adapter starts at zero, so the first KL is 0.
    """
    write_data(tmp_path)
    lora = {"use_peft": True, "lora_r": 4, "lora_alpha": 64, "lora_dropout": 0}
    one, *others = (
        train(mode, "grpo", tiny_model, tmp_path, max_steps=3, save_strategy="no", **lora)
        for mode in ("one", "ddp", "zero3", "fsdp")
    )
    assert one[0]["kl"] == 0 and one[1]["kl"] > 3e-5 and one[2]["kl"] > 3e-4
    for two in others:
        assert_equal_steps(one, two, 3)


SYNCED = {"sync_ref_model": True, "ref_model_sync_steps": 2}


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("ddp", SYNCED),
        pytest.param("zero2.yaml", SYNCED, marks=pytest.mark.extended),
        ("zero3", {}),
        ("fsdp2.yaml", {}),
        ("fsdp2.yaml sharded", {}),
    ],
    ids=str,
)
def test_two_processes_resume_in_the_middle_of_a_rollout(mode: str, options: dict, tiny_model: Path, tmp_path: Path):
    write_data(tmp_path)
    options = {"num_iterations": 2, "save_steps": 3, "max_steps": 5, **options}
    whole = train(mode, "grpo", tiny_model, tmp_path, **options)
    expected = weights(tmp_path / mode)
    resumed = train(
        mode, "grpo", tiny_model, tmp_path, **options, resume_from_checkpoint=tmp_path / mode / "checkpoint-3"
    )
    names = ("loss", "grad_norm", "entropy", "kl")
    steps = [[[entry[name] for name in names] for entry in log if "loss" in entry] for log in (whole, resumed)]
    assert len(steps[0]) == 5 and steps[0] == steps[1]
    saved = weights(tmp_path / mode)
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["ddp.yaml", "zero2.yaml", "zero3.yaml", "fsdp2.yaml"])
def test_accelerate_configuration(mode: str, tiny_model: Path, tmp_path: Path):
    """A step from each file with frozen parts, and greedy answers; also there one process has an image, one has not."""
    write_data(tmp_path, TEXT_ON_ONE_RANK)
    frozen = {"freeze_vision_modules": True, "freeze_projector": True}
    held_out = {"val_split_ratio": 0.5, "val_before_train": True}
    log = train(mode, "grpo", tiny_model, tmp_path, max_steps=1, save_strategy="no", **frozen, **held_out)
    kind = {"ddp.yaml": "MULTI_CPU", "fsdp2.yaml": "FSDP"}.get(mode, "DEEPSPEED")
    run = json.loads((tmp_path / mode / "run.json").read_text())
    assert (run["processes"], run["distributed"]) == (2, kind)
    assert [entry["eval_completions/mean_length"] for entry in log if "eval_format" in entry] == [8]
    before, after = weights(tiny_model), weights(tmp_path / mode)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(".visual." in name for name in changed)
    assert {name for name in before if ".language_model." in name} <= changed


@pytest.mark.multiprocess
@pytest.mark.parametrize(("mode", "said"), [("ddp", "Timeout (0:00:25)!"), ("zero3", "SIGABRT")])
def test_stock_hangs_when_one_process_has_text_only(mode: str, said: str, tiny_model: Path, tmp_path: Path):
    """It gathers images only where there are some; without that, ZeRO-3's collectives no longer match."""
    deepspeed = ["configs/deepspeed/zero3.json"] if mode == "zero3" else []
    launcher = [sys.executable, "-m", *TORCHRUN]
    command = [*launcher, "tests.support.stock", str(tiny_model), str(tmp_path), *deepspeed]
    done = subprocess.run(command, cwd=ROOT, env=environment(mode), capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and said in done.stderr
