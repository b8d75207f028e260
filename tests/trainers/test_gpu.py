"""On a GPU: bf16, fused kernels, and vLLM in the same process. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

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
