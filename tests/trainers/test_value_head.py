"""The value head as a part of a policy: its parameters, its file, its optimizer, several processes, vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.support.training import differences, image_rows, settings
from tests.support.values import FAST, TWO_UPDATES, head_of
from tests.trainers.test_algorithms import build, by_text, trained
from tests.trainers.test_distributed import train, weights, write_data
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.critic import check_value_model
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.value_head import ValueHead, add_value_head, is_value_parameter


def test_the_head_is_hidden_where_only_the_policy_is_wanted(tiny_model: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    names, keys = [name for name, _ in model.named_parameters()], set(model.state_dict())
    head = add_value_head(model)
    assert [name for name, _ in model.named_parameters() if not is_value_parameter(name)] == names
    assert [name for name, _ in model.named_parameters()] == [*names, "value_head.weight", "value_head.bias"]
    assert set(model.state_dict()) == keys and model.value_head is head
    assert not model.load_state_dict(model.state_dict(), strict=True).missing_keys
    assert not hasattr(model(input_ids=torch.tensor([[5, 6, 7]])), "token_values")


def test_a_value_is_computed_in_full_precision():
    head = ValueHead(4, torch.zeros(1, dtype=torch.bfloat16))
    head.weight.data.fill_(1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = head(torch.tensor([256.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16))
    assert value.dtype == torch.float32 and value.item() == 259  # bfloat16 has no 259


def test_the_head_has_a_learning_rate_of_its_own(tiny_model: Path, tmp_path: Path):
    """Adam's first step is the learning rate, whatever the gradient. By default it is 1e-4."""
    for given, expected in ((None, 1e-4), (3e-3, 3e-3)):
        trainer = trained("ppo", tiny_model, tmp_path, value_learning_rate=given)
        assert head_of(trainer).abs().max().item() == pytest.approx(expected, rel=1e-3)
        own, names = trainer.optimizer.param_groups[-1], {id(each) for each in trainer.critic.head.parameters()}
        assert {id(each) for each in own["params"]} == names and own["weight_decay"] == 0
        held = [id(each) for group in trainer.optimizer.param_groups for each in group["params"]]
        assert len(held) == len(set(held)) == len(list(trainer.model.parameters()))


def test_an_optimizer_of_ones_own_is_refused(tiny_model: Path, tmp_path: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path))
    with pytest.raises(ValueError, match="an optimizer of your own does not train the value head"):
        VLMGRPOTrainer(
            model, by_text, args, train_dataset=image_rows(), optimizers=(torch.optim.SGD(model.parameters()), None)
        )


def test_an_adapter_with_all_biases_is_refused_under_deepspeed(tiny_model: Path, tmp_path: Path):
    """DeepSpeed gathers what is saved from parameters, and PEFT then saves everything with a bias in its name."""
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path))
    adapter = LoraConfig(target_modules=["q_proj"], bias="all")
    trainer = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(), peft_config=adapter)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="an adapter with bias='all' would be saved with the biases of the value head"):
        check_value_model(trainer)


def test_an_engine_gets_the_policys_weights_alone(tiny_model: Path, tmp_path: Path):
    """A real engine refuses names that its own model does not have."""
    trainer = trained("ppo", tiny_model, tmp_path, **FAST)
    names = [name for name, _ in trainer.weight_sync.weights()]
    assert sorted(names) == sorted(load_file(tiny_model / "model.safetensors"))
    assert head_of(trainer).abs().max() > 1e-3


@pytest.mark.parametrize("has_adapter", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_bit_identical(has_adapter: bool, tiny_model: Path, tmp_path: Path):
    """Checkpoint 3 lies in the middle of the second rollout; beside the head's file it is a plain model."""

    def make(folder: Path) -> VLMGRPOTrainer:
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "value_warmup_steps": 1, **TWO_UPDATES}
        adapter = LoraConfig(target_modules=["q_proj", "v_proj"]) if has_adapter else None
        args = VLMGRPOConfig.of("ppo", **settings(folder, **options))
        return VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(), peft_config=adapter)

    whole, resumed = make(tmp_path), make(tmp_path)
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    saved = load_file(checkpoint / "value_head.safetensors")
    assert saved["weight"].shape == (1, 32) and 0 < saved["weight"].abs().max() < head_of(whole).abs().max()
    if not has_adapter:
        assert weights(checkpoint).keys() == weights(tiny_model).keys()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(head_of(resumed), head_of(whole))
    assert differences(whole, resumed)["weights"] == 0
    names = ("loss", "value_loss", "explained_variance")
    logs = [[[entry.get(name) for name in names] for entry in run.state.log_history[:6]] for run in (whole, resumed)]
    assert logs[0] == logs[1]


def test_a_checkpoint_without_a_value_head_is_refused(tiny_model: Path, tmp_path: Path):
    trained("dr_grpo", tiny_model, tmp_path, save_strategy="steps", save_steps=1)
    trainer = build("ppo", tiny_model, tmp_path, max_steps=2)
    with pytest.raises(
        ValueError, match=r"checkpoint-1 has no value_head\.safetensors: it was written by an algorithm"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_saved_model_is_a_plain_one(tiny_model: Path, tmp_path: Path):
    trainer = trained("ppo", tiny_model, tmp_path, **FAST)
    trainer.save_model(str(tmp_path / "saved"))
    assert weights(tmp_path / "saved").keys() == weights(tiny_model).keys()
    whole = {f"value_head.{name}": value for name, value in trainer.critic.head.named_parameters()}
    trainer._save(str(tmp_path / "gathered"), {**trainer.model.state_dict(), **whole})  # as DeepSpeed gathers it
    assert weights(tmp_path / "gathered").keys() == weights(tiny_model).keys()


OVER_TWO = {"algorithm": "ppo", "gradient_checkpointing": True, "value_learning_rate": 1e-2, "kl_reward_coef": 0.5}


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_two_processes_equal_one(mode: str, tiny_model: Path, tmp_path: Path):
    """Losses, values and weights; under ZeRO-3 the head is sharded, too, and a run resumes in mid-rollout."""
    write_data(tmp_path)
    options = {**OVER_TWO, "max_steps": 3, "steps_per_generation": 1, "num_iterations": 2, "save_steps": 1}
    one = train("one", "grpo", tiny_model, tmp_path, **options)
    expected = weights(tmp_path / "one")
    two = train(mode, "grpo", tiny_model, tmp_path, **options)
    for first, second in zip(one[:3], two[:3], strict=True):
        for name in ("loss", "grad_norm", "value_loss", "explained_variance", "kl_in_reward"):
            assert second.get(name, 0.0) == pytest.approx(first.get(name, 0.0), abs=2e-5, rel=1e-4), name
    saved = weights(tmp_path / mode)
    assert max((saved[name] - expected[name]).abs().max() for name in expected) < 1e-4
    heads = [load_file(tmp_path / run / "checkpoint-3" / "value_head.safetensors") for run in ("one", mode)]
    assert heads[0]["weight"].abs().max() > 1e-2 and torch.allclose(heads[0]["weight"], heads[1]["weight"], atol=1e-4)
    again = train(
        mode, "grpo", tiny_model, tmp_path, **options, resume_from_checkpoint=tmp_path / mode / "checkpoint-1"
    )
    assert [entry["loss"] for entry in again[:3]] == [entry["loss"] for entry in two[:3]]
    assert torch.equal(
        load_file(tmp_path / mode / "checkpoint-3" / "value_head.safetensors")["weight"], heads[1]["weight"]
    )
