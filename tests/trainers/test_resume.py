"""A resumed run continues from the trained weights, bit for bit on a CPU. Stock TRL restarts from the base weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trl import GRPOConfig, GRPOTrainer

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.trainers.checkpoints import CheckpointParts, write_record
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.resume import check_fit
from vlm_grpo.trainers.rloo import VLMRLOOTrainer
from vlm_grpo.trainers.state_file import load_state

OPTIONS = [{"lora": True}, {"beta": 0.1}, {"gradient_accumulation_steps": 2}, {"save_steps": 5}]
MID_ROLLOUT = [  # checkpoint 3 falls between two steps of one rollout
    {"num_iterations": 2},
    {"num_iterations": 2, "lora": True},
    {"steps_per_generation": 2},
    {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "beta": 0.1},
]
KINDS = {
    "grpo": (VLMGRPOTrainer, VLMGRPOConfig),
    "rloo": (VLMRLOOTrainer, VLMRLOOConfig),
    "stock": (GRPOTrainer, GRPOConfig),
}


def build(
    kind: str, model: Path, folder: Path, lora: bool = False, adapter: dict[str, Any] | None = None, **options: Any
) -> Any:
    trainer, config = KINDS[kind]
    arguments = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, **options}
    config_of_adapter = LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **(adapter or {})}) if lora else None
    args = config(**settings(folder, **arguments))
    return trainer(str(model), length_reward, args, train_dataset=image_rows(), peft_config=config_of_adapter)


def interrupted_and_whole(kind: str, model: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    whole = build(kind, model, folder, **options)
    whole.train()
    resumed = build(kind, model, folder, **options)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{options.get('save_steps', 3)}"))
    return resumed, whole


def weights_differ(one: Any, other: Any) -> float:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def step_losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("options", [{}, *OPTIONS, *MID_ROLLOUT], ids=str)
def test_resumed_run_is_bit_identical(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    """Four rows are an epoch of four steps (two with accumulation): every run crosses one, save_steps 5 is past it."""
    resumed, whole = interrupted_and_whole(kind, tiny_model, tmp_path, **options)
    assert step_losses(resumed) == step_losses(whole)
    assert weights_differ(resumed, whole) == 0


@pytest.mark.parametrize(("kind", "step"), [("grpo", 6), ("rloo", 6), ("stock", 7)])
def test_a_run_that_was_killed_after_its_last_step_takes_no_other(
    kind: str, step: int, tiny_model: Path, tmp_path: Path
):
    """Six steps are an epoch and a half. Stock takes a seventh."""
    options = {"max_steps": 6, "save_steps": 6, "lr_scheduler_type": "constant", "lora": True}
    resumed, whole = build(kind, tiny_model, tmp_path, **options), build(kind, tiny_model, tmp_path, **options)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.state.global_step == step
    assert (weights_differ(resumed, whole) == 0) == (step == 6)


def test_stock_resumes_from_other_weights(tiny_model: Path, tmp_path: Path):
    resumed, whole = interrupted_and_whole("stock", tiny_model, tmp_path)
    assert weights_differ(resumed, whole) > 0


def test_stock_samples_anew_in_the_middle_of_a_rollout(tiny_model: Path, tmp_path: Path):
    resumed, whole = interrupted_and_whole("stock", tiny_model, tmp_path, lora=True, num_iterations=2)
    assert weights_differ(resumed, whole) > 0


def test_a_resumed_rollout_processes_its_images_once_and_keeps_no_pixels_on_disk(tiny_model: Path, tmp_path: Path):
    options = {"num_iterations": 4, "steps_per_generation": 2}
    build("grpo", tiny_model, tmp_path, **options).train()
    saved = load_state(tmp_path / "checkpoint-3" / "training_state" / "rollout_0.safetensors")
    assert saved["step"] == 3 and "pixel_values" not in str(saved)
    resumed = build("grpo", tiny_model, tmp_path, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.encoder.counters.processed == 2  # the two images of the rollout, for four completions each
    assert len({id(sample) for batch in resumed._buffered_inputs for sample in batch["samples"]}) == 2


def test_keys_that_do_not_fit_are_an_error(tiny_model: Path, tmp_path: Path):
    from vlm_grpo.tiny import TinySize, save_tiny_qwen

    trainer = build("grpo", tiny_model, tmp_path)
    trainer.train()
    save_tiny_qwen(tmp_path / "checkpoint-3", TinySize(layers=3))
    write_record(tmp_path / "checkpoint-3")
    with pytest.raises(RuntimeError, match="layers"):
        build("grpo", tiny_model, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_weights_that_lack_a_key_are_an_error(tiny_model: Path, tmp_path: Path):
    """transformers fills in random numbers and warns."""
    build("grpo", tiny_model, tmp_path, max_steps=1, save_steps=1).train()
    path = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    write_record(path.parent)
    with pytest.raises(ValueError, match=r"do not fit this model: 1 missing \(\S*norm\.weight\)"):
        build("grpo", tiny_model, tmp_path, max_steps=2).train(resume_from_checkpoint=str(path.parent))


@pytest.fixture(scope="module")
def adapter_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    build("grpo", tiny_model, folder, lora=True, max_steps=1, save_steps=1).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 4}, r"8 mismatched .*lora_A\.weight \(8, 32\) for \(4, 32\)"),
        ({"target_modules": ["q_proj"]}, r"4 unexpected .*v_proj\.lora_A"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, r"4 missing .*k_proj\.lora_A"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"4 missing .*k_proj.*4 unexpected .*v_proj"),
    ],
    ids=["rank", "fewer", "more", "others"],
)
def test_an_adapter_that_does_not_fit_is_an_error(
    options: dict, said: str, adapter_run: Path, tiny_model: Path, tmp_path: Path
):
    """The last one has as many parameters of the same shapes: stock TRL takes it, and adapts nothing of before."""
    trainer = build("grpo", tiny_model, tmp_path, lora=True, adapter=options)
    with pytest.raises(ValueError, match=said):
        trainer.train(resume_from_checkpoint=str(adapter_run))


def test_stock_takes_an_adapter_of_other_modules(adapter_run: Path, tiny_model: Path, tmp_path: Path):
    options = {"lora": True, "adapter": {"target_modules": ["q_proj", "k_proj"]}}
    build("stock", tiny_model, tmp_path, **options).train(resume_from_checkpoint=str(adapter_run))


def test_whole_models_and_adapters_are_not_mistaken_for_each_other(adapter_run: Path, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="was written with an adapter alone"):
        build("grpo", tiny_model, tmp_path).train(resume_from_checkpoint=str(adapter_run))
    build("grpo", tiny_model, tmp_path, max_steps=1, save_steps=1).train()
    with pytest.raises(ValueError, match="was written with all weights"):
        build("grpo", tiny_model, tmp_path, lora=True).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_deepspeed_checkpoints_of_another_model_or_run_are_an_error(tmp_path: Path):
    """The files are as DeepSpeed writes them; the two-process tests read real ones."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[1].requires_grad_(False)
    (tmp_path / "latest").write_text("global_step1")
    (tmp_path / "global_step1").mkdir()
    shapes = {"0.weight": torch.Size([3, 2]), "0.bias": torch.Size([3])}

    def write(**changes: Any) -> None:
        states = {"param_shapes": [{**shapes, **changes}]}
        torch.save(states, tmp_path / "global_step1" / "zero_pp_rank_0_mp_rank_00_model_states.pt")

    write()
    check_fit(model, tmp_path, is_deepspeed=True)
    with pytest.raises(ValueError, match="written with DeepSpeed"):
        check_fit(model, tmp_path, is_deepspeed=False)
    write(**{"0.bias": torch.Size([4]), "2.bias": torch.Size([1])})
    with pytest.raises(ValueError, match=r"1 unexpected \(2\.bias\); 1 mismatched \(0\.bias \(4,\) for \(3,\)\)"):
        check_fit(model, tmp_path, is_deepspeed=True)
    (tmp_path / "latest").unlink()
    with pytest.raises(ValueError, match="written without DeepSpeed"):
        check_fit(model, tmp_path, is_deepspeed=True)


def test_a_rollout_of_another_shape_is_an_error_and_between_two_a_new_one_begins(tiny_model: Path, tmp_path: Path):
    build("grpo", tiny_model, tmp_path, num_iterations=2, max_steps=4, save_steps=1).train()
    said = r"checkpoint-3 lies in the middle of a rollout made with num_iterations 2, now 3"
    with pytest.raises(ValueError, match=said):
        build("grpo", tiny_model, tmp_path, num_iterations=3).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )
    resumed = build("grpo", tiny_model, tmp_path, num_iterations=3, max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 5 and resumed._step == 1  # the first of the new rollout's three


def test_a_rollout_that_lacks_what_the_loss_needs_is_an_error(tiny_model: Path, tmp_path: Path):
    build("grpo", tiny_model, tmp_path, num_iterations=2, max_steps=1, save_steps=1).train()
    said = (
        "checkpoint-1 lies in the middle of a rollout made with beta above 0 False, now True: resume with the original"
    )
    with pytest.raises(ValueError, match=said):
        build("grpo", tiny_model, tmp_path, num_iterations=2, beta=0.1).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_a_process_whose_rollout_is_lost_says_so(tiny_model: Path, tmp_path: Path):
    build("grpo", tiny_model, tmp_path, max_steps=1, save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    trainer = build("grpo", tiny_model, tmp_path)
    parts = trainer.checkpoint_parts
    parts.load(checkpoint)
    assert trainer._step == 1
    second = CheckpointParts(parts.parts, SimpleNamespace(index=1), is_main=False)
    with pytest.raises(ValueError, match=r"rollout_\d\.safetensors is missing: the checkpoint cannot be resumed from"):
        second.verify(checkpoint)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optim": "adafactor"}, r"optimizer\.pt is of another kind of optimizer, with other settings \(amsgrad, "),
        ({"max_steps": 1}, "the checkpoint is at step 2, and this run ends at step 1: give --max_steps"),
        ({"weight_decay": 0.1}, None),
        ({"optim": "adamw_torch"}, None),
    ],
    ids=str,
)
def test_what_a_checkpoint_does_not_go_with_is_said_before_training(
    options: dict, said: str | None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.getbasetemp() / "lora_for_optimizers"
    if not folder.exists():
        build("grpo", tiny_model, folder, lora=True, max_steps=2, save_steps=2).train()
    trainer = build("grpo", tiny_model, folder, **{"lora": True, "max_steps": 3, "save_strategy": "no", **options})
    if said is None:
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        assert trainer.state.global_step == 3
        return
    with pytest.raises(ValueError, match=said):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_other_trained_parameters_are_an_error(tiny_model: Path, tmp_path: Path):
    """Of as many weights in the files: only the optimizer knows which were trained."""
    build("grpo", tiny_model, tmp_path, max_steps=1, save_steps=1).train()
    trainer = build("grpo", tiny_model, tmp_path, freeze_vision_modules=True)
    with pytest.raises(ValueError, match=r"optimizer\.pt is of a run that trains other parameters \(\[33, 23\] in its"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
