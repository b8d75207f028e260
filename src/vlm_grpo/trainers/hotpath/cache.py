"""The keys and values of a rollout: one prompt's repeated for its completions, and grown without being copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, StaticCache

ROOM = 256  # tokens, in which caches grow


class RoomyLayer(DynamicLayer):
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

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = (self.keys, self.values)


def _with_room(tensor: Tensor, length: int) -> Tensor:
    rows, heads, used, width = tensor.shape
    room = tensor.new_empty(rows, heads, length, width)
    room[:, :, :used] = tensor
    return room


def is_plain(cache: Cache) -> bool:
    """Whether a cache holds all keys and values of every layer and nothing else."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def repeated(cache: Cache, rows: Tensor) -> Cache:
    """The cache with its row `rows[b]` in row b, changed in place; layers that only grow become roomy."""
    cache.layers = [
        RoomyLayer(layer.keys[rows], layer.values[rows]) if type(layer) is DynamicLayer else _chosen(layer, rows)
        for layer in cache.layers
    ]
    return cache


def _chosen(layer: Any, rows: Tensor) -> Any:
    layer.batch_select_indices(rows)
    return layer


def fixed(cache: Cache, rows: Tensor, model: nn.Module, length: int) -> StaticCache:
    """The same in a cache that takes at least `length` tokens and never grows, as compiled steps need it."""
    room = -(-length // ROOM) * ROOM  # few sizes, so that the step is compiled a few times only
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=room)
    for number, layer in enumerate(cache.layers):
        static.update(layer.keys[rows], layer.values[rows], number)
    return static
