"""The flags of rollout engines, and TRL's that mean the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOConfig

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.rollouts.engines.table import ENGINES, EngineEntry, EngineRun
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
        ({"rollout_engine": "vllm", "rollout_transfer": "adapter"}, ValueError, "adapter needs --rollout_engine vllm"),
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


def test_every_flag_reaches_the_engine(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs: list[EngineRun] = []

    def make(run: EngineRun) -> SimpleNamespace:
        runs.append(run)
        return SimpleNamespace(needs_whole_groups=False, has_own_weights=True)

    monkeypatch.setitem(ENGINES, "vllm", EngineEntry("keeps what it is made from", make))
    flags = {
        "rollout_url": ["http://a:1"],
        "rollout_transfer": "nccl",
        "rollout_folder": str(tmp_path / "weights"),
        "rollout_wait": 7.0,
        "vllm_group_port": 4711,
        "vllm_tensor_parallel_size": 2,
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_max_model_length": 99,
        "vllm_enable_sleep_mode": True,
        "vllm_model_impl": "transformers",
        "vllm_structured_outputs_regex": "a+",
        "generation_kwargs": {"presence_penalty": 0.5},
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 3,
    }
    options: dict[str, Any] = settings(tmp_path, rollout_engine="vllm", **flags)
    VLMGRPOTrainer(str(tiny_model), length_reward, VLMGRPOConfig(**options), train_dataset=image_rows())
    (run,) = runs
    assert (run.urls, run.transfer, run.folder, run.wait) == (["http://a:1"], "nccl", tmp_path / "weights", 7.0)
    assert run.nccl_port == 4711
    assert (run.tensor_parallel_size, run.memory_fraction, run.max_model_length) == (2, 0.4, 99)
    assert (run.sleeps, run.implementation, run.seed, run.max_sequences) == (True, "transformers", 3, 8)
    assert (run.model_name, run.dtype) == (str(tiny_model), torch.float32)
    sampling = run.sampling
    assert (sampling.regex, sampling.options, sampling.max_new_tokens) == ("a+", {"presence_penalty": 0.5}, 8)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)


def test_lengths_come_from_the_limits_and_options_from_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs: list[EngineRun] = []

    def make(run: EngineRun) -> SimpleNamespace:
        runs.append(run)
        return SimpleNamespace(needs_whole_groups=False, has_own_weights=True)

    monkeypatch.setitem(ENGINES, "vllm", EngineEntry("keeps what it is made from", make))
    flags = {"rollout_options": '{"enforce_eager": true}', "max_prompt_length": 100, "bf16": True}
    options: dict[str, Any] = settings(tmp_path, rollout_engine="vllm", **flags)
    VLMGRPOTrainer(str(tiny_model), length_reward, VLMGRPOConfig(**{**options, **flags}), train_dataset=image_rows())
    (run,) = runs
    assert (run.options, run.max_model_length) == ({"enforce_eager": True}, 108)
    assert (run.dtype, run.folder) == (torch.bfloat16, tmp_path / "rollout_engine")
