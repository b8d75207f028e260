"""What TRL's client is asked for, on a loopback server; NCCL itself needs GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from tests.support.fake_vllm import FakeVLLM
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.engines.nccl_transfer import NCCLTransfer, check_nccl
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.servers import ServerClient, ServerPool
from vlm_grpo.rollouts.engines.vllm_server import VLLMServerEngine, VLLMServerKind
from vlm_grpo.rollouts.engines.weight_files import Everyone
from vlm_grpo.tiny import build_tiny_qwen

CONFIG = Qwen2Config(num_hidden_layers=1)
CPU = torch.device("cpu")


class FakeClient:
    """TRL's client, as far as it is used; notes what it sends."""

    def __init__(self, url: str, port: int) -> None:
        self.url, self.port, self.parts, self.is_updating = url, port, [], False

    @contextmanager
    def weight_update(self) -> Iterator[None]:
        self.is_updating = True
        yield
        self.is_updating = False

    def update_named_params(self, metadata: list, named_params: Iterator) -> None:
        assert self.is_updating
        tensors = list(named_params)
        assert metadata == [(name, "float32", list(tensor.shape)) for name, tensor in tensors]
        self.parts.append([(name, tensor.tolist()) for name, tensor in tensors])


@pytest.fixture
def fakes() -> Iterator[list[FakeVLLM]]:
    fakes = [FakeVLLM().start() for _ in range(2)]
    yield fakes
    for fake in fakes:
        fake.stop()


def gathered() -> Iterator[tuple[str, torch.Tensor]]:
    """Three tensors in the same memory."""
    buffer = torch.zeros(2)
    for number in range(3):
        yield f"w{number}", buffer.fill_(number)


def transfer(fakes: list[FakeVLLM], clients: list[FakeClient], *, is_main: bool = True) -> NCCLTransfer:
    kind = VLLMServerKind("tiny", CONFIG, 10, "raw_logprobs")
    pool = ServerPool([ServerClient(fake.url, seconds=5.0) for fake in fakes], kind, wait_seconds=5.0, concurrency=2)

    def open_fake(url: str, port: int, device: torch.device) -> FakeClient:
        clients.append(FakeClient(url, port))
        return clients[-1]

    everyone = Everyone("run", is_main, lambda: None)
    return NCCLTransfer(pool, everyone, finish=kind.finish, device=CPU, open_client=open_fake, largest_part=16)


def test_every_server_gets_every_part_and_forgets_its_caches(fakes):
    """Tensors of 8 bytes, two in a part."""
    clients: list[FakeClient] = []
    sender = transfer(fakes, clients)
    for _ in range(2):
        sender.update(gathered())
    expected = [[("w0", [0.0, 0.0]), ("w1", [1.0, 1.0])], [("w2", [2.0, 2.0])]]
    assert [client.parts for client in clients] == [expected * 2] * 2
    assert [client.port for client in clients] == [51216, 51217]
    for fake in fakes:
        assert fake.weight_version.startswith("run-000002/")
        assert len(fake.bodies("/reset_encoder_cache")) == len(fake.bodies("/reset_prefix_cache")) == 2


def test_other_processes_gather_and_use_the_servers(fakes):
    """They see the session that the main process has set."""
    main, other = transfer(fakes, []), transfer(fakes, [], is_main=False)
    main.update(gathered())
    other.update(gathered())
    assert other.pool.map(lambda client, item: item, [1, 2]) == [1, 2]
    fakes[0].restart()
    fakes[1].restart()
    with pytest.raises(ValueError, match="resume the run from its last checkpoint"):
        other.pool.map(lambda client, item: item, [1, 2])


def test_a_gpu_is_needed(fakes, tmp_path: Path):
    with pytest.raises(ValueError, match="sends from a GPU, got cpu; use --rollout_transfer folder"):
        VLLMServerEngine(
            [fake.url for fake in fakes],
            encoder=PromptEncoder(build_tiny_qwen()[1], {}),
            settings=SamplingSettings(20, [2]),
            model="tiny",
            config=CONFIG,
            folder=tmp_path,
            run_id="run",
            transfer="nccl",
            nccl_device=CPU,
        )


def test_vllm_is_needed_here_too():
    if find_spec("vllm") is None:
        with pytest.raises(ImportError, match="--rollout_transfer nccl needs vllm"):
            check_nccl(torch.device("cuda", 0))
    else:
        check_nccl(torch.device("cuda", 0))


def test_the_server_needs_a_setting():
    kind = VLLMServerKind("tiny", CONFIG, 10, "raw_logprobs", transfer="nccl")
    assert """--weight-transfer-config '{"backend": "nccl"}'""" in kind.start_command
