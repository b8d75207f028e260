"""What FSDP2 shards is whole for generation, and only then. Two ranks of which one exists: torch's fake backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from vlm_grpo.trainers.fsdp import full_params


@pytest.fixture
def model() -> Iterator[nn.Sequential]:
    """Two layers of 4 x 4 and one more, sharded in three units: the first frees its weights after forward."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard(layers[0], reshard_after_forward=True)
    fully_shard(layers[1], reshard_after_forward=False)
    yield fully_shard(layers)
    torch.distributed.destroy_process_group()


def sharded(model: nn.Sequential) -> list[bool]:
    return [isinstance(layer.weight, DTensor) for layer in model]


def test_unsharded_keeps_every_parameter_through_forwards(model: nn.Sequential):
    with full_params(model), torch.no_grad():
        for _ in range(2):
            assert sharded(model) == [False, False, False]
            assert all(layer.weight.shape == (4, 4) for layer in model)
            model(torch.ones(1, 4))
    assert sharded(model) == [True, True, True]
    assert [layer.weight.to_local().shape for layer in model] == [(2, 4)] * 3


def test_unsharded_leaves_training_as_it_was(model: nn.Sequential):
    """After a forward with gradients the first unit is sharded again; the second was told not to, the root never is."""
    with full_params(model):
        pass
    model(torch.ones(1, 4))
    assert sharded(model) == [True, False, False]


def test_unsharded_shards_again_after_an_error(model: nn.Sequential):
    with pytest.raises(RuntimeError, match="out of memory"), full_params(model):
        raise RuntimeError("out of memory")
    assert sharded(model) == [True, True, True]
