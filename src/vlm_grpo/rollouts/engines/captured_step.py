"""A decoding step recorded once as a CUDA graph and replayed for every token: one launch instead of one per kernel.

The kernels are those of the eager step, so that nothing is compiled and the numbers are the same. What may differ from
token to token lives in tensors that stay where they are: the inputs of the forward, and a cache of fixed size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.engines.transformers_compat import CACHE

logger = logging.getLogger(__name__)

Run = Callable[[], ModelOutput]
WARM_UPS = 2  # eager steps before recording: libraries choose kernels and allocate workspaces in the first one


def cuda_graph(run: Run) -> Run:
    """Record `run` and return what replays it; the tensors of its result are overwritten by every replay.

    Raises:
        RuntimeError: `run` waits for the GPU, or does something else that cannot be recorded.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on copying
        output = run()

    def replay() -> ModelOutput:
        graph.replay()
        return output

    return replay


class CapturedStep:
    """The forward of a model for one more token in each row, over a static cache; eager where it cannot be captured.

    Args:
        record: turns the forward into its replay; it may run the forward first.
    """

    def __init__(self, model: nn.Module, record: Callable[[Run], Run] = cuda_graph) -> None:
        self.model = model
        self.record = record
        self._inputs: ModelInputs = {}  # tensors that the recorded step reads
        self._replay: Run | None = None

    def __call__(self, **inputs: Any) -> ModelOutput:
        """Return the output of the model for the inputs of its forward; it is valid until the next call."""
        if self._replay is None:
            self._inputs = {name: _copy(value) for name, value in inputs.items()}
            self._replay = self._capture(inputs[CACHE])
        elif not all(_has_same_shape(self._inputs[name], inputs.get(name)) for name in self._inputs):
            return self.model(**inputs)
        else:
            for name, value in inputs.items():
                _overwrite(self._inputs[name], value)
        return self._replay()

    def _capture(self, cache: Cache) -> Run:
        """Record the step, or leave it eager with a warning; the cache is unchanged."""

        def run() -> ModelOutput:
            return self.model(**self._inputs)

        state = [(tensor, tensor.clone()) for tensor in _cache_state(cache)]
        try:
            replay = self.record(run)
        except RuntimeError as error:  # what CUDA raises for what cannot be recorded
            logger.warning("decoding cannot be captured here (%s); every kernel is launched by itself", error)
            replay = run
        for tensor, before in state:
            tensor.copy_(before)
        return replay


def _cache_state(cache: Cache) -> Iterator[Tensor]:
    """Yield the tensors of a cache that a step changes, except keys and values, which it would overwrite equally."""
    for layer in cache.layers:
        yield from _iter_tensors(getattr(layer, "cumulative_length", None))
        yield from _iter_tensors(getattr(layer, "conv_states", None))
        yield from _iter_tensors(getattr(layer, "recurrent_states", None))


def _iter_tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _iter_tensors(item)


def _copy(value: object) -> object:
    """Return a copy of a tensor or of a mapping's tensors; anything else stays."""
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def _has_same_shape(buffer: object, value: object) -> bool:
    """Return whether a value can be copied into a buffer."""
    if isinstance(buffer, dict):
        return isinstance(value, dict) and all(_has_same_shape(item, value.get(name)) for name, item in buffer.items())
    if isinstance(buffer, Tensor):
        return isinstance(value, Tensor) and value.shape == buffer.shape
    return value is buffer or value == buffer


def _overwrite(buffer: object, value: object) -> None:
    if isinstance(buffer, dict) and isinstance(value, dict):
        for name, item in buffer.items():
            _overwrite(item, value[name])
    elif isinstance(buffer, Tensor) and isinstance(value, Tensor):
        buffer.copy_(value)
