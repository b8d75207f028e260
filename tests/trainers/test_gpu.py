"""On a GPU: bf16, 4-bit weights, vLLM in the same process. Skipped without one: so far none of these was run there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoProcessor, BitsAndBytesConfig

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.hotpath import flex
from vlm_grpo.trainers.hotpath.attention import attention
from vlm_grpo.trainers.hotpath.layout import Group, Layout
from vlm_grpo.trainers.rloo import VLMRLOOTrainer
from vlm_grpo.trainers.rollout import PromptEncoder, collate_visual

KINDS = [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=["grpo", "rloo"])
def test_trains_in_bf16(kind: tuple, tiny_model: Path, tmp_path: Path):
    args = kind[1](**settings(tmp_path, use_cpu=False, bf16=True, gradient_checkpointing=True))
    trainer = kind[0](str(tiny_model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    assert next(trainer.model.parameters()).is_cuda
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)


@pytest.mark.gpu
def test_pixels_wait_in_memory_that_the_gpu_can_read(tiny_model: Path):
    samples = PromptEncoder(AutoProcessor.from_pretrained(tiny_model), {}).encode(list(image_rows(2)))
    assert all(sample.visual["pixel_values"].is_pinned() for sample in samples)
    assert collate_visual(samples)["pixel_values"].is_pinned()


@pytest.mark.gpu
def test_flex_attention_equals_sdpa():
    """Outputs and gradients in bf16, for groups of different lengths with grouped-query attention."""
    layout = Layout((Group(0, 70, (20, 31)), Group(121, 40, (9,))), torch.arange(70, 121))
    shapes = ((1, 4, 170, 64), (1, 2, 170, 64), (1, 2, 170, 64))
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    found = []
    for kernel in (flex.compiled(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flex, "compiled", lambda kernel=kernel: kernel)
            output, _ = attention(torch.nn.Module(), *tensors, None, scaling=0.125, packed=layout)
        found.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    assert flex.compiled() is not None
    assert all(torch.allclose(one, other, atol=0.05, rtol=0.05) for one, other in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=["grpo", "rloo"])
def test_shared_prompts_equal_plain_rows(kind: tuple, tiny_model: Path, tmp_path: Path):
    """In 32 bits, so that the two may be compared; decoding is compiled on one side."""
    logs = []
    for mode in ("off", "on"):
        args = kind[1](**settings(tmp_path, use_cpu=False, shared_prefix=mode, generation_kwargs={"min_new_tokens": 8}))
        trainer = kind[0](str(tiny_model), length_reward, args, train_dataset=image_rows())
        trainer.train()
        logs.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=["grpo", "rloo"])
def test_trains_an_adapter_beside_four_bit_weights(kind: tuple, tiny_model: Path, tmp_path: Path):
    """The packed weights stay as they are; the KL of the first step is 0, that of the second is not."""
    pytest.importorskip("bitsandbytes")
    args = kind[1](**settings(tmp_path, use_cpu=False, bf16=True, beta=0.1, gradient_checkpointing=True))
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    adapter = LoraConfig(r=4, lora_alpha=64, target_modules=None)
    options = {"train_dataset": image_rows(), "quantization_config": four_bit, "peft_config": adapter}
    trainer = kind[0](str(tiny_model), length_reward, args, **options)
    packed = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.dtype == torch.uint8}
    assert any("language_model.layers.0" in name for name in packed) and trainer.ref_model is None
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert steps[0]["kl"] == 0 and steps[1]["kl"] != 0
    assert all(torch.equal(trainer.model.get_parameter(name), before) for name, before in packed.items())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=["grpo", "rloo"])
def test_trains_with_vllm_in_the_same_process(kind: tuple, tmp_path: Path):
    pytest.importorskip("vllm")
    from vlm_grpo.tiny import TinySize, save_tiny_qwen

    model = save_tiny_qwen(tmp_path / "model", TinySize(hidden=128, heads=4))  # vLLM needs heads of 32 or more
    options = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    args = kind[1](**settings(tmp_path, use_cpu=False, bf16=True, **options))
    trainer = kind[0](str(model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)
