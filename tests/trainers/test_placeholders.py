"""No image or video placeholder is ever sampled, however much the model wants to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.evaluation.backends.hf import generate_greedy
from vlm_grpo.model_utils import placeholder_ids
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)]


def sampled(kind: tuple, model: Path, folder: Path, **options: Any) -> tuple[set[int], Any]:
    """The tokens of a rollout of a model that is sure of one token, the video placeholder."""
    args = kind[1](**settings(folder, max_steps=1, **options))
    trainer = kind[0](str(model), length_reward, args, train_dataset=image_rows())
    wanted = trainer.processing_class.video_token_id
    prefer(trainer.model, wanted)
    seen: list[list[int]] = []
    trainer.reward_funcs = [
        lambda completion_ids, **columns: seen.extend(completion_ids) or [0.0] * len(completion_ids)
    ]
    trainer.train()
    return {token for ids in seen for token in ids}, trainer


def prefer(model: Any, token: int) -> None:
    """Add 100 to the token's logit."""
    bias = torch.zeros(model.config.text_config.vocab_size)
    bias[token] = 100.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)


@pytest.mark.parametrize("kind", KINDS, ids=["grpo", "rloo"])
def test_a_placeholder_that_the_model_prefers_is_not_sampled(kind: tuple, tiny_model: Path, tmp_path: Path):
    tokens, trainer = sampled(kind, tiny_model, tmp_path, generation_kwargs={"suppress_tokens": [20]})
    placeholders = set(placeholder_ids(trainer.model.config, trainer.processing_class))
    assert placeholders == {trainer.processing_class.tokenizer.convert_tokens_to_ids(name) for name in NAMES}
    assert len(tokens) > 4 and not tokens & {*placeholders, 20}


NAMES = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>")


def test_stock_samples_the_video_placeholder(tiny_model: Path, tmp_path: Path):
    tokens, trainer = sampled((GRPOTrainer, GRPOConfig), tiny_model, tmp_path)
    assert tokens == {trainer.processing_class.video_token_id}


def test_greedy_evaluation_does_not_write_one_either(tiny_model: Path, tmp_path: Path):
    args = VLMGRPOConfig(**settings(tmp_path))
    trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
    prefer(trainer.model, trainer.processing_class.video_token_id)
    (completion,) = generate_greedy(
        trainer.model, trainer.processing_class, image_rows().select([0]), max_completion_length=4
    )
    assert len(completion.text) > 0  # special tokens are not decoded
