"""Packed attention as one FlexAttention call (arXiv:2412.05496), for CUDA; `attention.py` falls back to sdpa without.

The kernel is compiled once: rows are padded to a multiple of BLOCK tokens, and the layout comes as tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad

from vlm_grpo.shared_prefix.autocast import to_autocast_dtype
from vlm_grpo.shared_prefix.packing import Group, Layout

logger = logging.getLogger(__name__)

BLOCK = 128
MIN_HEAD_DIM = 16  # dimensions; the kernel multiplies tiles of 16


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, kernel: Callable = flex_attention
) -> Tensor:
    """Return the outputs (1, H, L, D) of a packed row: query (1, H, L, D), key and value (1, K, L, D)."""
    length = query.size(2)
    missing = -length % BLOCK
    padded = [pad(to_autocast_dtype(tensor), (0, 0, 0, missing)) for tensor in (query, key, value)]
    mask = block_mask(layout, length + missing, query.device)
    return kernel(*padded, block_mask=mask, scale=scaling, enable_gqa=query.size(1) != key.size(1))[:, :, :length]


@lru_cache(maxsize=4)  # the layers of a forward, and of its recomputation in the backward, share it
def block_mask(layout: Layout, length: int, device: torch.device) -> BlockMask:
    """Return which tokens see which; padding is a group of its own."""
    group, segment = (part.to(device) for part in token_groups(layout, length))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_prefix_or_own = (segment[key] == 0) | (segment[key] == segment[query])
        return (group[query] == group[key]) & (key <= query) & is_prefix_or_own

    return create_block_mask(sees, None, None, length, length, device=device)


def token_groups(layout: Layout, length: int) -> tuple[Tensor, Tensor]:
    """Return (L,) each token's group, -1 for padding, and (L,) its segment within it, 0 for the prefix."""
    group, segment = torch.full((length,), -1), torch.zeros(length, dtype=torch.long)
    for number, part in enumerate(layout.groups):
        group[part.start : part.end] = number
        start = part.start + part.prefix
        for index, size in enumerate(part.lengths, 1):
            segment[start : start + size] = index
            start += size
    return group, segment


@cache
def compiled() -> Callable | None:
    """Return the compiled kernel; None, with a warning, where it cannot be built on this machine."""
    kernel = torch.compile(flex_attention, dynamic=True)
    try:
        check_kernel(kernel, torch.device("cuda"))
    except RuntimeError as error:  # what torch's compiler raises
        logger.warning("FlexAttention cannot be compiled here (%s); packed rows go through sdpa", error)
        return None
    return kernel


def check_kernel(kernel: Callable, device: torch.device) -> None:
    """Run the forward and the backward of a kernel on a small packed row, also where gradients are switched off.

    Raises:
        RuntimeError: the kernel cannot be built, or has no backward.
    """
    layout = Layout((Group(0, 64, (32, 32)),), torch.arange(64, 128))
    with torch.inference_mode(False), torch.enable_grad():  # the first packed row may be one that is only scored
        row = torch.zeros(1, 2, 128, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        packed_attention(row, row, row, layout, None, kernel).sum().backward()
