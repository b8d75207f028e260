"""Rows of a cache are selected with every state that its layers hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.cache_utils import Cache, DummyLayer, DynamicIndexedLayer, DynamicLayer, LinearAttentionLayer

from vlm_grpo.rollouts.engines.kv_cache import (
    REPEATABLE_LAYERS,
    PreallocatedCacheLayer,
    repeat_cache,
    static_cache,
    supports_static_cache,
)

WINDOW = {"sliding_window": 4}
ROWS = torch.tensor([0, 0, 1, 2, 2, 1])


def drawn(rows: int, *shape: int, seed: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def write(cache: Cache, select: Callable[[Tensor], Tensor], length: int, seed: int) -> list[Tensor]:
    """Write tokens of three prompts into the first layer, each state that it has; what the layer gives back."""
    states = [select(drawn(3, 2, length, 4, seed=seed + part)) for part in range(2)]
    conv, recurrent = select(drawn(3, 5, length, seed=seed + 2)), select(drawn(3, 2, 4, 4, seed=seed + 3))
    layer, given = cache.layers[0], []
    if isinstance(layer, DynamicLayer):
        given += cache.update(*states, 0)
    if isinstance(layer, DynamicIndexedLayer):
        given.append(cache.update_indexer(select(drawn(3, length, 4, seed=seed + 4)), 0))
    if isinstance(layer, LinearAttentionLayer):
        given += [cache.update_conv_state(conv, 0), cache.update_recurrent_state(recurrent, 0).clone()]
    return given


def made(kind: type) -> Cache:
    return Cache(layers=[kind(**WINDOW)])


@pytest.mark.parametrize("length", [3, 7], ids=["short", "longer than the window"])
@pytest.mark.parametrize(
    "kind", [kind for kind in REPEATABLE_LAYERS if kind is not DummyLayer], ids=lambda kind: kind.__name__
)
def test_a_repeated_cache_goes_on_as_one_that_had_these_rows_from_the_start(kind: type, length: int):
    """Repeated, then two tokens; then rows leave, then one token more."""
    prompts, expected = made(kind), made(kind)
    write(prompts, lambda states: states, length, seed=0)
    write(expected, lambda states: states[ROWS], length, seed=0)
    cache = repeat_cache(prompts, ROWS)
    for seed in (10, 20):
        assert same(*(write(each, lambda states: states[ROWS], 1, seed) for each in (cache, expected)))
    living = torch.tensor([1, 2, 4])
    cache.reorder_cache(living)
    alone = made(kind)
    write(alone, lambda states: states[ROWS[living]], length, seed=0)
    for seed in (10, 20):
        write(alone, lambda states: states[ROWS[living]], 1, seed)
    assert same(*(write(each, lambda states: states[ROWS[living]], 1, 30) for each in (cache, alone)))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_layer_that_grows_has_room_for_the_next_tokens():
    cache = made(DynamicLayer)
    write(cache, lambda states: states, 5, seed=0)
    cache = repeat_cache(cache, ROWS)
    assert type(cache.layers[0]) is PreallocatedCacheLayer
    places = set()
    for seed in range(20):
        write(cache, lambda states: states[ROWS], 1, seed)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1


@pytest.mark.parametrize("kind", REPEATABLE_LAYERS, ids=lambda kind: kind.__name__)
def test_only_keys_values_and_states_of_fixed_size_go_into_a_fixed_cache(kind: type):
    assert supports_static_cache(made(kind)) == (kind in (DynamicLayer, LinearAttentionLayer))


class Text:
    """A model of one attention and one linear layer, as far as a fixed cache asks."""

    config: Any = LlamaConfig(num_hidden_layers=2, layer_types=["full_attention", "linear_attention"])


def test_a_fixed_cache_holds_the_rows_that_a_growing_one_does():
    cache = Cache(layers=[DynamicLayer(), LinearAttentionLayer()])
    keys, values = cache.update(drawn(3, 2, 5, 4, seed=0), drawn(3, 2, 5, 4, seed=1), 0)
    conv = cache.update_conv_state(drawn(3, 5, 4, seed=2), 1).clone()
    recurrent = cache.update_recurrent_state(drawn(3, 2, 4, 4, seed=3), 1).clone()
    static = static_cache(cache, ROWS, Text(), length=9)
    assert static.get_seq_length() == 5 and static.layers[0].keys.shape[2] == 256
    assert torch.equal(static.layers[0].keys[:, :, :5], keys[ROWS])
    assert torch.equal(static.layers[0].values[:, :, :5], values[ROWS])
    assert torch.equal(static.get_conv_state(1), conv[ROWS])
    assert torch.equal(static.get_recurrent_state(1), recurrent[ROWS])
    assert static.has_previous_state(1)
