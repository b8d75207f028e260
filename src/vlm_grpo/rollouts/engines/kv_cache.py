"""The cache of a rollout: a prompt's state repeated for its completions, and keys and values grown without copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
    StaticCache,
    StaticLayer,
)

from vlm_grpo.shared_prefix.autocast import in_autocast_type

ROOM = 256  # tokens, in which caches grow
# Classes whose `reorder_cache` selects the rows of every state that they hold; a subclass may hold more.
REPEATABLE = (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)


class PreallocatedCacheLayer(DynamicLayer):
    """A layer that writes new tokens into room that it has; transformers' own copies all of them for each new one.

    `keys` and `values` (B, K, L, D) are views of what is in use.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._room = (keys, values)  # none yet

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.size(2)
        end = start + key_states.size(2)
        if end > self._room[0].size(2):
            self._room = tuple(_with_room(tensor, end + max(ROOM, end // 2)) for tensor in (self.keys, self.values))
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._room = (self.keys, self.values)


class FixedLayer(StaticLayer):
    """A layer of a fixed size that takes keys and values of any type, as layers that grow do.

    Under autocast, keys may be of 32 bits where values are of 16.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            key_states, value_states = key_states.to(self.keys.dtype), value_states.to(self.values.dtype)
        return super().update(key_states, value_states, *args, **options)


def _with_room(tensor: Tensor, length: int) -> Tensor:
    rows, heads, used, width = tensor.shape
    room = tensor.new_empty(rows, heads, length, width)
    room[:, :, :used] = tensor
    return room


def unrepeatable_layers(model: nn.Module) -> list[str]:
    """Return the classes of the model's cache layers whose rows cannot be selected one by one; [] where all can."""
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return sorted(kind.__name__ for kind in kinds - {*REPEATABLE})


def repeat_cache(cache: Cache, rows: Tensor) -> Cache:
    """Return the cache with its row `rows[b]` in row b, changed in place; layers that only grow become roomy."""
    cache.reorder_cache(rows)
    cache.layers = [
        PreallocatedCacheLayer(in_autocast_type(layer.keys), in_autocast_type(layer.values))
        if type(layer) is DynamicLayer and layer.is_initialized
        else layer
        for layer in cache.layers
    ]
    return cache


def can_be_fixed(cache: Cache) -> bool:
    """Return whether a cache holds all keys and values, or states of a fixed size, in every layer."""
    return all(type(layer) in (DynamicLayer, LinearAttentionLayer) for layer in cache.layers)


def static_cache(cache: Cache, rows: Tensor, model: nn.Module, length: int) -> StaticCache:
    """Return the same in a cache that takes at least `length` tokens and never grows, as compiled steps need it."""
    room = -(-length // ROOM) * ROOM  # few sizes, so that the step is compiled a few times only
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=room)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            static.layers[number] = FixedLayer(room)
            static.update(in_autocast_type(layer.keys[rows]), in_autocast_type(layer.values[rows]), number)
        else:
            _copy_states(static, number, layer, rows)
    return static


def _copy_states(static: StaticCache, number: int, layer: LinearAttentionLayer, rows: Tensor) -> None:
    """Write the states of a linear or convolution layer through the cache's own methods, which fix their addresses."""
    for state in range(layer.number_of_states):
        if layer.is_conv_states_initialized[state]:
            static.update_conv_state(layer.conv_states[state][rows], number, state_idx=state)
        if layer.is_recurrent_states_initialized[state]:
            static.update_recurrent_state(layer.recurrent_states[state][rows], number, state_idx=state)
