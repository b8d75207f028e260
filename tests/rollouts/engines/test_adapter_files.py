"""Adapters alone, on a loopback server and as files; test_vllm_server_real.py compares log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Config

from tests.support.fake_vllm import LOAD_ADAPTER, FakeVLLM
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.adapter_files import AdapterFiles, check_adapter
from vlm_grpo.rollouts.engines.policy_weights import PolicyWeights
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.vllm_server import VLLMServerEngine
from vlm_grpo.tiny import build_tiny_qwen

LANGUAGE = r".*language_model.*q_proj"


class Gathered:
    """A backend without shards, which notes what it gathers."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def summon_full_params(self, model: nn.Module, writeback: bool) -> Iterator[None]:
        yield

    @contextmanager
    def gather_params(self, parameters: list) -> Iterator[None]:
        self.count += len(parameters)
        yield


def adapted(targets: str = LANGUAGE, **options: object) -> PeftModel:
    return get_peft_model(build_tiny_qwen()[0], LoraConfig(r=2, target_modules=targets, **options))


def test_an_adapter_is_written_as_peft_does(tmp_path: Path):
    model = adapted()
    model.save_pretrained(tmp_path / "peft")
    files = AdapterFiles(tmp_path / "ours")
    files.write("a", files.tensors(PolicyWeights(model, Gathered())))
    ours = load_file(tmp_path / "ours" / "a" / "adapter_model.safetensors")
    expected = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    loaded = PeftModel.from_pretrained(build_tiny_qwen()[0], str(tmp_path / "ours" / "a"))
    assert loaded.peft_config["default"].r == 2


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        (lambda: build_tiny_qwen()[0], "has no adapter"),
        (lambda: adapted(use_dora=True), "without DoRA"),
        (lambda: adapted(bias="all"), "plain LoRA alone"),
        (lambda: adapted(modules_to_save=["lm_head"]), "lm_head.*is trained beside the adapter"),
        (lambda: adapted(".*visual.*qkv"), "visual.*is not in a linear layer of the language model"),
    ],
)
def test_what_vllm_would_not_serve_is_refused(model, pattern):
    with pytest.raises(ValueError, match=f"{pattern}.*--rollout_transfer folder"):
        check_adapter(model())


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    fake = FakeVLLM(lora_config={"max_lora_rank": 8}).start()
    yield fake
    fake.stop()


def engine_of(fake: FakeVLLM, folder: Path) -> VLLMServerEngine:
    return VLLMServerEngine(
        [fake.url],
        encoder=PromptEncoder(build_tiny_qwen()[1], {}),
        settings=SamplingSettings(20, [2]),
        model="tiny",
        config=Qwen2Config(num_hidden_layers=1),
        folder=folder,
        run_id="run",
        transfer="adapter",
        adapter_rank=2,
    )


def test_completions_are_those_of_the_adapter(fake: FakeVLLM, tmp_path: Path):
    """Also after a restart; nothing but the adapter is gathered."""
    model, backend = adapted(r".*language_model.layers.0.self_attn.q_proj"), Gathered()
    engine = engine_of(fake, tmp_path)
    first, *others = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for number in (7, 8):
            first.fill_(number)
            engine.update_weights(PolicyWeights(model, backend))
            fake.restart()
            assert engine.generate([EncodedPrompt([1], "")]).ids == [[number, 0, 2]]
    assert backend.count == 2 * (1 + len(others))
    first, second = "adapter-run-000001", "adapter-run-000002"
    assert fake.loads == [first, first, second, second]
    assert "--enable-lora --max-lora-rank 8" in engine.kind.start_command
    engine_of(fake, tmp_path)  # the next run finds the adapter among the server's models


def test_a_server_without_adapters_is_refused(fake: FakeVLLM, tmp_path: Path):
    fake.missing = (LOAD_ADAPTER,)
    with pytest.raises(ValueError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine_of(fake, tmp_path)
    fake.missing, fake.lora_config = (), {"max_lora_rank": 1}
    with pytest.raises(ValueError, match="adapters up to rank 1; expected 2 or more"):
        engine_of(fake, tmp_path)
    fake.lora_config = None
    with pytest.raises(ValueError, match="adapters up to rank 0; expected 2 or more"):
        engine_of(fake, tmp_path)


def test_a_server_with_other_weights_below_is_refused(fake: FakeVLLM, tmp_path: Path):
    """Another run has loaded merged weights; an adapter would be added to these."""
    engine = engine_of(fake, tmp_path)
    fake.weight_version = "former-run-000009/abc"
    with pytest.raises(ValueError, match="another run has loaded its own; start it again"):
        engine.update_weights(PolicyWeights(adapted(), Gathered()))


def test_weights_without_a_policy_are_refused(fake: FakeVLLM, tmp_path: Path):
    with pytest.raises(ValueError, match="sends the adapter of a policy, got list"):
        engine_of(fake, tmp_path).update_weights([])
