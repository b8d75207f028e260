"""What a vLLM engine is handed. The engine itself needs a GPU (test_gpu.py); here a fake one notes its arguments."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from trl.trainer import grpo_trainer, rloo_trainer

from tests.support.training import length_reward, picture, settings, user
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer


class Engine:
    """Takes what TRL's vLLM engine takes and answers with fixed tokens."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.generation_kwargs: dict[str, Any] = options["generation_kwargs"] or {}
        server = {"model_config": {"logprobs_mode": "processed_logprobs"}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: server)

    def sync_weights(self) -> None:
        """Nothing to synchronise."""

    def generate(self, **arguments: Any) -> tuple:
        self.calls.append(arguments)
        count = len(arguments["prompts"]) * self.generation_kwargs.get("n", 1)
        ids = [[20 + row, 30, 31] for row in range(count)]
        return arguments["prompts"], ids, [[[-6.0]] * 3 for _ in ids], None


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TRL's trainers make the fake engine."""
    for module in (grpo_trainer, rloo_trainer):
        monkeypatch.setattr(module, "VLLMGeneration", Engine)


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.parametrize(
    "kind", [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)], ids=["grpo", "rloo"]
)
def test_vllm_gets_images_as_processed_and_the_prompt_it_expects(
    kind: tuple, mode: str, tiny_model: Path, tmp_path: Path
):
    """The engine expands placeholders itself, the server finds its images by the runs of expanded ones."""
    rows = [{"prompt": user("what"), "images": [picture(0, 90, 60), picture(1)]}, {"prompt": user("red"), "images": []}]
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "shuffle_dataset": False}
    args = kind[1](**settings(tmp_path, use_vllm=True, vllm_mode=mode, **options))
    trainer = kind[0](str(tiny_model), length_reward, args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    (call,) = trainer.vllm_generation.calls
    each = 1 if mode == "colocate" else 4  # TRL takes every fourth prompt for its server
    assert trainer.vllm_generation.generation_kwargs.get("n") == (4 if mode == "colocate" else None)
    assert [None if images is None else [image.size for image in images] for images in call["images"]] == (
        [[(84, 56), (84, 56)]] * each + [None] * each  # 90 x 60 is rounded to whole patches of 28
    )
    image_token = trainer.processing_class.image_token_id
    counts = [ids.count(image_token) for ids in call["prompts"]]
    assert counts == ([2, 0] if mode == "colocate" else [12] * 4 + [0] * 4)  # 3 x 2 tokens an image
    if mode == "colocate":
        text = trainer.processing_class.tokenizer.decode(call["prompts"][0])
        assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == 2


def test_without_sharing_vllm_gets_a_prompt_for_each_completion(tiny_model: Path, tmp_path: Path):
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "shared_prefix": "off", "use_vllm": True}
    data = Dataset.from_list([{"prompt": user("what"), "images": [picture(0)]}] * 2)
    trainer = VLMGRPOTrainer(
        str(tiny_model), length_reward, VLMGRPOConfig(**settings(tmp_path, **options)), train_dataset=data
    )
    trainer.train()
    assert len(trainer.vllm_generation.calls[0]["prompts"]) == 8
    assert trainer.vllm_generation.generation_kwargs["n"] == 1
