"""On a GPU: bf16, packed rows, decoding, 4-bit weights, vLLM in the same process. Skipped without one.

Those of 4-bit weights, flash-attn and vLLM were never run: they need packages that the machine with the GPU lacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.rollouts.encoder import PromptEncoder, collate_visual
from vlm_grpo.rollouts.engines import shared_prefill
from vlm_grpo.rollouts.engines.shared_prefill import Decoding, SharedPrefillGenerate, prompt_batch
from vlm_grpo.shared_prefix import flex_attention
from vlm_grpo.shared_prefix.attention import attention
from vlm_grpo.shared_prefix.packing import Group, Layout
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)]


@pytest.fixture(autouse=True)
def nothing_falls_back(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A kernel or a step that cannot be built is a warning for users, and a fault here."""
    yield
    assert not [record.message for record in caplog.get_records("call") if "cannot be" in record.message]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=["grpo", "rloo"])
def test_trains_in_bf16(kind: tuple, tiny_model: Path, tmp_path: Path):
    args = kind[1](**settings(tmp_path, use_cpu=False, bf16=True, gradient_checkpointing=True))
    trainer = kind[0](str(tiny_model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    assert next(trainer.model.parameters()).is_cuda
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)
    differences = [log.get("sampling/sampling_logp_difference/mean", 0.0) for log in trainer.state.log_history]
    assert 0 < max(differences) < 0.1


@pytest.mark.gpu
def test_pixels_wait_in_memory_that_the_gpu_can_read(tiny_model: Path):
    samples = PromptEncoder(AutoProcessor.from_pretrained(tiny_model), {}).encode(list(image_rows(2)))
    assert all(sample.visual["pixel_values"].is_pinned() for sample in samples)
    assert collate_visual(samples)["pixel_values"].is_pinned()


@pytest.mark.gpu
@pytest.mark.parametrize("gradients", [torch.no_grad, torch.inference_mode])
def test_flex_attention_is_found_where_gradients_are_off(gradients: Callable):
    """The first packed row of a process may be one that is only scored."""
    flex_attention.compiled.cache_clear()
    with gradients():
        assert flex_attention.compiled() is not None


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)], ids=["fp32", "bf16"])
def test_flex_attention_equals_sdpa(dtype: torch.dtype, allowed: float):
    """Outputs and gradients, for groups of different lengths with grouped-query attention."""
    layout = Layout((Group(0, 70, (20, 31)), Group(121, 40, (9,))), torch.arange(70, 121))
    shapes = ((1, 4, 170, 64), (1, 2, 170, 64), (1, 2, 170, 64))
    tensors = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
    found = []
    for kernel in (flex_attention.compiled(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flex_attention, "compiled", lambda kernel=kernel: kernel)
            output, _ = attention(torch.nn.Module(), *tensors, None, scaling=0.125, packed=layout)
        found.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    assert flex_attention.compiled() is not None
    assert all(torch.allclose(a, b, atol=allowed, rtol=allowed) for a, b in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("decoding", ["static", "captured", "compiled"])
def test_decoding_equals_eager_decoding(
    decoding: Decoding, dtype: torch.dtype, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    """Token for token, in 16 bits up to the first token that rounding may decide; nothing falls back."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=dtype).eval().cuda()
    processor = AutoProcessor.from_pretrained(tiny_model)
    prompts = PromptEncoder(processor, {}).encode(list(image_rows(3)))
    inputs = {k: v.cuda() for k, v in prompt_batch(prompts, processor.tokenizer.pad_token_id).items()}
    scores: list[torch.Tensor] = []
    monkeypatch.setattr(
        shared_prefill, "choose_tokens", lambda found, _: scores.append(found.clone()) or found.argmax(dim=-1)
    )
    options = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24}
    tokens = []
    with torch.no_grad():
        for way in ("dynamic", decoding):
            method = SharedPrefillGenerate([0, 0, 1, 1, 2, 2], way)
            tokens.append(model.generate(**inputs, **options, custom_generate=method)[:, inputs["input_ids"].size(1) :])
    assert "cannot be" not in caplog.text
    eager = torch.stack(scores[:24], dim=1)  # (B, C, V)
    for row, first, second in zip(eager, *tokens, strict=True):
        differing = (first != second).nonzero().flatten().tolist()
        if differing:
            place = differing[0]
            assert dtype == torch.bfloat16
            assert row[place, first[place]] - row[place, second[place]] < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["", "gradient checkpointing"])
@pytest.mark.parametrize("is_adapter", [False, True], ids=["full", "lora"])
def test_packed_gradients_equal_plain_ones(options: dict, is_adapter: bool, tiny_model: Path, tmp_path: Path):
    """One step in 32 bits, and the check of the fast path against the plain one is passed."""
    norms = []
    for mode in ("off", "on"):  # on: a check that fails is an error
        adapter = LoraConfig(r=4, target_modules=None) if is_adapter else None
        fixed_lengths = {"generation_kwargs": {"min_new_tokens": 8}}
        args = VLMGRPOConfig(**settings(tmp_path, use_cpu=False, shared_prefix=mode, **fixed_lengths, **options))
        trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows(), peft_config=adapter)
        trainer.train()
        norms.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and max(norms[0]) > 0


@pytest.mark.gpu
def test_flash_attention_keeps_sharing(tiny_model: Path, tmp_path: Path, caplog: Any):
    pytest.importorskip("flash_attn")
    options = {"attn_implementation": "flash_attention_2", "dtype": "bfloat16"}
    args = VLMGRPOConfig(**settings(tmp_path, use_cpu=False, bf16=True, shared_prefix="on", model_init_kwargs=options))
    trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)
    differences = [log.get("sampling/sampling_logp_difference/mean", 0.0) for log in trainer.state.log_history]
    assert 0 < max(differences) < 0.1


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

    model = save_tiny_qwen(
        tmp_path / "model", TinySize(hidden=128, heads=4, is_tied=False)
    )  # vLLM needs heads of 32 or more
    options = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    args = kind[1](**settings(tmp_path, use_cpu=False, bf16=True, **options))
    trainer = kind[0](str(model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)
    differences = [log.get("sampling/sampling_logp_difference/mean", 0.0) for log in trainer.state.log_history]
    assert 0 < max(differences) < 0.1
