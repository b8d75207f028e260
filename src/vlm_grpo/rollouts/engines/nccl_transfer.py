"""Weights of a policy over NCCL, from the GPU of the main process to those of vLLM servers. Untested without GPUs.

TRL's client sends them (`trl.generation.vllm_client`), which needs vLLM in the trainer's environment as well. It lets a
server forget prefixes alone after that (TRL issue 7198); here the image embeddings are forgotten too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_grpo.rollouts.engines.engine import NamedTensor
from vlm_grpo.rollouts.engines.servers import ServerPool, Weights
from vlm_grpo.rollouts.engines.weight_files import Everyone

if TYPE_CHECKING:
    from trl.generation.vllm_client import VLLMClient

FIRST_PORT = 51216  # TRL's --vllm_group_port
LARGEST_PART = 2**30  # bytes that are sent at a time
OpenClient = Callable[[str, int, torch.device], "VLLMClient"]


def check_nccl(device: torch.device) -> None:
    """Check that weights can be sent from a device.

    Raises:
        ValueError: it is no GPU.
        ImportError: vLLM is not installed here.
    """
    if device.type != "cuda":
        raise ValueError(f"--rollout_transfer nccl sends from a GPU, got {device}; use --rollout_transfer folder")
    if find_spec("vllm") is None:
        raise ImportError(
            "--rollout_transfer nccl needs vllm in the trainer's environment, too: pip install 'vlm_grpo[vllm]', or "
            "use --rollout_transfer folder"
        )


def open_client(url: str, port: int, device: torch.device) -> VLLMClient:
    """Return TRL's client of a server, in a group with the server's GPUs.

    Raises:
        RuntimeError: the server was started without --weight-transfer-config.
    """
    from trl.generation.vllm_client import VLLMClient

    client = VLLMClient(base_url=url, group_port=port)
    client.init_communicator(device)
    return client


class NCCLTransfer:
    """Gives vLLM servers the weights of a policy, GPU to GPU.

    Every process has one. A server that is restarted cannot be given the weights again: that ends the run, which goes
    on from its last checkpoint.

    Args:
        pool: of the servers.
        everyone: the processes of the run.
        finish: lets a server forget what it computed with former weights, and sets its session.
        device: of the main process.
        open_client: from the URL of a server, a port and the device to TRL's client.
        first_port: of the main process, for the first server's group.
        largest_part: bytes that are gathered before they are sent.
    """

    def __init__(
        self,
        pool: ServerPool,
        everyone: Everyone,
        *,
        finish: Callable[..., None],
        device: torch.device,
        open_client: OpenClient = open_client,
        first_port: int = FIRST_PORT,
        largest_part: int = LARGEST_PART,
    ) -> None:
        self.pool, self.everyone, self.finish, self.device = pool, everyone, finish, device
        self.open_client, self.first_port, self.largest_part = open_client, first_port, largest_part
        self.num_updates = 0
        self._clients: list[VLLMClient] = []

    def update(self, weights: Iterable[NamedTensor]) -> None:
        """Let the servers have these weights; every process takes part, and returns when they can be used."""
        self.num_updates += 1
        current = Weights(f"{self.everyone.run_id}-{self.num_updates:06d}", None)
        self.everyone.wait()  # no process generates any more
        if self.everyone.is_main:
            self._send(weights)
            for server in self.pool.servers:
                self.finish(server.client, current.new_session())
        else:
            for _ in weights:  # gathers
                pass
        self.pool.set_weights(current)
        self.everyone.wait()

    def _send(self, weights: Iterable[NamedTensor]) -> None:
        if not self._clients:
            urls = [server.client.url for server in self.pool.servers]
            ports = range(self.first_port, self.first_port + len(urls))
            self._clients = [self.open_client(url, port, self.device) for url, port in zip(urls, ports, strict=True)]
        with ExitStack() as stack:
            for client in self._clients:
                stack.enter_context(client.weight_update())
            for part in self._parts(weights):
                kinds = [(name, str(each.dtype).removeprefix("torch."), list(each.shape)) for name, each in part]
                for client in self._clients:
                    client.update_named_params(kinds, iter(part))

    def _parts(self, weights: Iterable[NamedTensor]) -> Iterator[Sequence[tuple[str, Tensor]]]:
        """Yield copies; a gathered tensor is gone with the next one."""
        part: list[tuple[str, Tensor]] = []
        size = 0
        for name, tensor in weights:
            if part and size + tensor.nbytes > self.largest_part:
                yield part
                part, size = [], 0
            part.append((name, tensor.detach().to(self.device, copy=True).contiguous()))
            size += tensor.nbytes
        if part:
            yield part
