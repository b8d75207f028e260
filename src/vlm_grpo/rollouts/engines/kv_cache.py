"""The KV cache of a rollout: a prompt's state repeated for its completions, grown without copying every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
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

from vlm_grpo.model_utils import model_config
from vlm_grpo.shared_prefix.autocast import to_autocast_dtype

GROWTH = 256  # tokens, in which caches grow
# Classes whose `reorder_cache` selects the rows of every state that they hold; a subclass may hold more.
REPEATABLE_LAYERS = (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)


class PreallocatedCacheLayer(DynamicLayer):
    """A layer that writes new tokens into preallocated buffers; transformers' own copies all tokens for each new one.

    `keys` and `values` (B, K, L, D) are views of the used part.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._buffers = (keys, values)  # none yet

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        keys, values = _stored(self)
        start = keys.size(2)
        end = start + key_states.size(2)
        if end > self._buffers[0].size(2):
            size = end + max(GROWTH, end // 2)
            self._buffers = (_grow(keys, size), _grow(values, size))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # any tensor of int64
        self._buffers = _stored(self)


class CastingStaticLayer(StaticLayer):
    """A static layer that casts keys and values to its own dtypes.

    Under autocast, keys may be of 32 bits where values are of 16.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            keys, values = _stored(self)
            key_states, value_states = key_states.to(keys.dtype), value_states.to(values.dtype)
        return super().update(key_states, value_states, *args, **options)


def _grow(tensor: Tensor, length: int) -> Tensor:
    rows, heads, used, width = tensor.shape
    buffer = tensor.new_empty(rows, heads, length, width)
    buffer[:, :, :used] = tensor
    return buffer


def _stored(layer: CacheLayerMixin) -> tuple[Tensor, Tensor]:
    """Return keys and values of a layer that has some."""
    if layer.keys is None or layer.values is None:
        raise ValueError("the layer of the cache holds nothing yet")
    return layer.keys, layer.values


def unrepeatable_layers(model: nn.Module) -> list[str]:
    """Return the classes of the model's cache layers whose rows cannot be selected one by one; [] where all can."""
    kinds = {type(layer) for layer in DynamicCache(config=model_config(model)).layers}
    return sorted(kind.__name__ for kind in kinds - {*REPEATABLE_LAYERS})


def repeat_cache(cache: Cache, rows: Tensor) -> Cache:
    """Return the cache with its row `rows[b]` in row b, changed in place; growing layers are preallocated."""
    cache.reorder_cache(rows)  # type: ignore[arg-type]  # any tensor of int64
    cache.layers = [
        PreallocatedCacheLayer(*(to_autocast_dtype(tensor) for tensor in _stored(layer)))
        if type(layer) is DynamicLayer and layer.is_initialized
        else layer
        for layer in cache.layers
    ]
    return cache


def supports_static_cache(cache: Cache) -> bool:
    """Return whether a cache holds all keys and values, or states of a fixed size, in every layer."""
    return all(type(layer) in (DynamicLayer, LinearAttentionLayer) for layer in cache.layers)


def static_cache(cache: Cache, rows: Tensor, model: nn.Module, length: int) -> StaticCache:
    """Return the same in a cache that takes at least `length` tokens and never grows, as compiled steps need it."""
    size = -(-length // GROWTH) * GROWTH  # few sizes, so that the step is compiled a few times only
    static = StaticCache(config=model_config(model).get_text_config(), max_cache_len=size)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            static.layers[number] = CastingStaticLayer(size)
            keys, values = _stored(layer)
            static.update(to_autocast_dtype(keys[rows]), to_autocast_dtype(values[rows]), number)
        elif isinstance(layer, LinearAttentionLayer):
            _copy_states(static, number, layer, rows)
    return static


def _copy_states(static: StaticCache, number: int, layer: LinearAttentionLayer, rows: Tensor) -> None:
    """Write the states of a linear or convolution layer through the cache's own methods, which fix their addresses."""
    for state in range(layer.number_of_states):
        conv, recurrent = layer.conv_states[state], layer.recurrent_states[state]
        if layer.is_conv_states_initialized[state] and conv is not None:
            static.update_conv_state(conv[rows], number, state_idx=state)
        if layer.is_recurrent_states_initialized[state] and recurrent is not None:
            static.update_recurrent_state(recurrent[rows], number, state_idx=state)
