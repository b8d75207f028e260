"""The weights of an own value model: what is copied from the policy, and what others see of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText

from tests.support.training import image_rows, settings
from tests.support.value_models import OWN, ppo_trainer
from tests.trainers.test_algorithms import by_text
from tests.trainers.test_distributed import weights
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.fsdp import FullParamsBackend, model_for_generation
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.value_head import add_value_head, is_value_parameter, policy_parameters, twin_of


def test_beside_an_adapter_it_is_the_model_below(tiny_model: Path, tmp_path: Path):
    plain = dict(AutoModelForImageTextToText.from_pretrained(tiny_model).model.named_parameters())
    own = ppo_trainer(tiny_model, tmp_path, adapter=True, gradient_checkpointing=True).critic.head
    copied = dict(own.backbone.named_parameters())
    assert copied.keys() == plain.keys() and all(torch.equal(copied[name], plain[name]) for name in plain)
    assert all(each.requires_grad == name.startswith("language_model.") for name, each in copied.items())
    assert own.backbone.is_gradient_checkpointing


def test_beside_an_adapter_of_the_vision_tower_the_tower_is_trained(tiny_model: Path, tmp_path: Path):
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, algorithm_options=OWN))
    config = LoraConfig(target_modules=["q_proj", "qkv"])
    trainer = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(), peft_config=config)
    is_trained = {name: each.requires_grad for name, each in trainer.critic.head.backbone.named_parameters()}
    assert all(trained == ("merger" not in name) for name, trained in is_trained.items())


def test_a_quantized_policy_is_refused(tiny_model: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    layer = model.model.language_model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)  # as bitsandbytes packs it
    with pytest.raises(ValueError, match="weights are quantized, and a copy of them cannot be trained"):
        twin_of(model)


def test_the_policys_own_weights_are_the_only_ones_that_others_see(tiny_model: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    names, keys = [name for name, _ in model.named_parameters()], set(model.state_dict())
    add_value_head(model, "own")
    assert set(model.state_dict()) == keys
    assert not model.load_state_dict(model.state_dict(), strict=True).missing_keys
    with pytest.raises(RuntimeError, match=r"Missing key.*lm_head"):
        model.load_state_dict({name: value for name, value in model.state_dict().items() if name != "lm_head.weight"})
    kept = {name: each for name, each in model.named_parameters() if not is_value_parameter(name)}
    policy = list(kept.values())
    assert list(kept) == names
    assert all(one is other for one, other in zip(policy_parameters(model), policy, strict=True))
    assert len(list(model.parameters())) == len(names) + len(list(model.model.parameters())) + 2


def test_generation_gathers_the_policy_alone(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ZeRO-3 makes all that it is given whole on every process."""
    trainer = ppo_trainer(tiny_model, tmp_path, max_steps=1)
    seen: list[int] = []

    @contextmanager
    def gather(self: FullParamsBackend, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        seen.append(len(parameters))
        yield

    monkeypatch.setattr(FullParamsBackend, "is_zero3", True)
    monkeypatch.setattr(FullParamsBackend, "gather_params", gather)
    with model_for_generation(trainer.model, trainer.accelerator):
        assert seen == [len(list(AutoModelForImageTextToText.from_pretrained(tiny_model).parameters()))]
    with model_for_generation(trainer.model, trainer.accelerator, gather_deepspeed3_params=False):
        assert len(seen) == 1


def test_a_saved_model_is_a_plain_one(tiny_model: Path, tmp_path: Path):
    trainer = ppo_trainer(tiny_model, tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert weights(tmp_path / "saved").keys() == weights(tiny_model).keys()
    trainer._save(str(tmp_path / "gathered"), dict(trainer.model.named_parameters()))  # as DeepSpeed gathers it
    assert weights(tmp_path / "gathered").keys() == weights(tiny_model).keys()
