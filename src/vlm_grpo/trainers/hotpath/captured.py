"""A decoding step recorded once as a CUDA graph and replayed for every token: one launch instead of one per kernel.

The kernels are those of the eager step, so that nothing is compiled and the numbers are the same. What may differ from
token to token lives in tensors of fixed size: the new tokens, their positions, the mask and the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticCache

logger = logging.getLogger(__name__)

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
WARM_UPS = 2  # eager steps before recording: libraries choose kernels and allocate workspaces in the first one


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record `run` and return what replays it into the tensor that the recorded call returned.

    Raises:
        RuntimeError: `run` waits for the GPU, or does something else that cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on copying
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class CapturedStep:
    """The forward of a model for one more token in each row, over a cache of fixed size.

    Args:
        model: a causal language model whose attention takes a boolean mask (B, 1, 1, K), as sdpa does.
        cache: filled by the prefill; every call adds one token to each row.
        record: turns a call without arguments into its replay.
    """

    def __init__(self, model: nn.Module, cache: StaticCache, record: Record = cuda_graph) -> None:
        self.model = model
        self.cache = cache
        self.record = record
        self._inputs: dict[str, Tensor] = {}
        self._mask: Tensor | None = None  # (B, 1, 1, K)
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Return the logits (B, V) after the tokens (B, 1).

        `attention_mask` (B, L) is 1 at the L - 1 tokens in the cache and the new one that may be seen. `inputs` are
        further tensors of the forward, such as `position_ids`, of the same shape at every call.
        """
        values = {"input_ids": input_ids, **inputs}
        if self._replay is None:
            self._begin(values, attention_mask)
            self._replay = self._recorded()
        else:
            for name, buffer in self._inputs.items():
                buffer.copy_(values[name])
        self._mask[:, 0, 0, : attention_mask.size(1)] = attention_mask.bool()
        return self._replay()

    def _begin(self, values: dict[str, Tensor], attention_mask: Tensor) -> None:
        self._inputs = {name: value.clone() for name, value in values.items()}
        rows, room = len(attention_mask), self.cache.layers[0].keys.size(2)
        self._mask = torch.zeros(rows, 1, 1, room, dtype=torch.bool, device=attention_mask.device)
        self._mask[:, 0, 0, : attention_mask.size(1)] = attention_mask.bool()

    def _run(self) -> Tensor:
        output = self.model(
            **self._inputs,
            attention_mask=self._mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        return output.logits[:, -1]

    def _recorded(self) -> Callable[[], Tensor]:
        """Record the step, or leave it eager with a warning; the cache is as full as before."""
        lengths = [layer.cumulative_length.clone() for layer in self.cache.layers]
        replay: Callable[[], Tensor] = self._run
        try:
            self._warm_up()
            self._restore(lengths)
            replay = self.record(self._run)
        except RuntimeError as error:  # what CUDA raises for what cannot be recorded
            logger.warning("decoding cannot be captured here (%s); every kernel is launched by itself", error)
        self._restore(lengths)
        return replay

    def _warm_up(self) -> None:
        if not self._mask.is_cuda:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)

    def _restore(self, lengths: list[Tensor]) -> None:
        for layer, length in zip(self.cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)
