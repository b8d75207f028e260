"""The flags of rollout engines, and TRL's that mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rollout_flags import resolve_engine

SERVER = {"use_vllm": True, "vllm_mode": "server"}


@pytest.mark.parametrize(
    ("options", "engine", "urls"),
    [
        ({}, "transformers", None),
        ({"rollout_engine": "vllm"}, "vllm", None),
        ({"use_vllm": True, "vllm_mode": "colocate"}, "vllm", None),
        ({"use_vllm": True, "rollout_engine": "vllm"}, "vllm", None),
        (SERVER, "vllm", ["http://0.0.0.0:8000"]),
        ({**SERVER, "vllm_server_host": "a", "vllm_server_port": 7}, "vllm", ["http://a:7"]),
        ({**SERVER, "vllm_server_base_url": "https://b/"}, "vllm", ["https://b"]),
        ({**SERVER, "rollout_url": ["http://c:1/", "http://d:2"]}, "vllm", ["http://c:1", "http://d:2"]),
    ],
)
def test_what_is_chosen(options: dict[str, Any], engine: str, urls: list[str] | None, tmp_path: Path):
    args = VLMGRPOConfig(**settings(tmp_path, **options))
    assert (args.rollout_engine, args.rollout_url, args.use_vllm) == (engine, urls, False)
    resolve_engine(args)  # again, by the trainer
    assert (args.rollout_engine, args.rollout_url) == (engine, urls)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rollout_engine": "vlm"}, KeyError, "unknown rollout engine 'vlm'; did you mean 'vllm'"),
        ({"rollout_engine": "sglang"}, ValueError, "sglang needs --rollout_url"),
        ({"use_vllm": True, "rollout_engine": "sglang"}, ValueError, "contradict each other"),
        ({"rollout_url": ["http://a"]}, ValueError, "--rollout_url has no effect with --rollout_engine transformers"),
        ({"rollout_options": {"a": 1}}, ValueError, "--rollout_options has no effect"),
        ({"rollout_engine": "vllm", "rollout_options": "[1]"}, ValueError, "--rollout_options must be a JSON object"),
        ({"rollout_engine": "vllm", "rollout_url": ["host:8000"]}, ValueError, "must be like http://host:8000"),
        (
            {"rollout_engine": "vllm", "rollout_url": ["http://a"], "rollout_options": {"seed": 1}},
            ValueError,
            "start the servers with them",
        ),
        ({"rollout_engine": "vllm", "rollout_transfer": "nccl"}, ValueError, "nccl needs --rollout_engine vllm with"),
        ({"rollout_engine": "vllm", "rollout_wait": 0.0}, ValueError, "--rollout_wait must be above 0"),
        (
            {"rollout_engine": "vllm", "loss_type": "vespo", "vllm_importance_sampling_mode": "sequence_mask"},
            ValueError,
            "vespo needs --vllm_importance_sampling_mode",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type, message: str, tmp_path: Path):
    with pytest.raises(error, match=message):
        VLMGRPOConfig(**settings(tmp_path, **options))


def test_a_configuration_of_trls_own_class_has_the_default(tmp_path: Path):
    args: Any = GRPOConfig(**settings(tmp_path))
    resolve_engine(args)
    assert (args.rollout_engine, args.rollout_wait) == ("transformers", 600.0)


def test_a_tied_model_is_refused_on_a_cpu(tiny_model: Path, tmp_path: Path):
    """Before vLLM is imported, which is not installed here."""
    args = VLMGRPOConfig(**settings(tmp_path, rollout_engine="vllm"))
    with pytest.raises(ValueError, match="tie_word_embeddings false"):
        VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
