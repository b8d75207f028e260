"""What an engine is given for each family: the tensors that `save_pretrained` would write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from trl.distributed import DistributedBackend

from tests.support.families import FAMILIES_TINY, save_for_vllm
from vlm_grpo.rollouts.engines.policy_weights import PolicyWeights


def weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(PolicyWeights(model, DistributedBackend(Accelerator(cpu=True))))


def changed(folder: Path) -> nn.Module:
    """Return the model with other weights than its files have."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor))
    return model


def assert_same(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    assert [name for name, tensor in some.items() if not torch.equal(tensor, others[name])] == []


@pytest.mark.parametrize("family", [name for name in FAMILIES_TINY if name != "kimi_k25"])
def test_the_weights_are_those_of_a_checkpoint(family: str, folder_of: Callable[[str], Path], tmp_path: Path):
    model = changed(folder_of(family))
    model.save_pretrained(tmp_path)
    assert_same(weights(model), load_file(tmp_path / "model.safetensors"))


def test_the_names_are_those_of_the_files_that_the_model_was_loaded_from(tmp_path: Path):
    """Published files have a prefix in the tower that transformers leaves out, and that vLLM asks for."""
    save_for_vllm("gemma3", tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    sent = weights(model)
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in sent
    assert_same(sent, load_file(tmp_path / "model.safetensors"))


def test_tensors_that_files_have_as_one_are_joined(folder_of: Callable[[str], Path]):
    """Kimi's files have queries, keys and values of the tower as one tensor."""
    model = changed(folder_of("kimi_k25"))
    found = {name: tensor for name, tensor in weights(model).items() if "wqkv.weight" in name}
    assert len(found) == model.config.vision_config.num_hidden_layers
    assert all(tensor.shape == (3 * 32, 32) for tensor in found.values())


def test_an_adapter_is_merged_under_the_names_of_the_checkpoint(folder_of: Callable[[str], Path], tmp_path: Path):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(folder_of("gemma3")), config)
    sent = weights(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    assert_same(sent, load_file(tmp_path / "model.safetensors"))
