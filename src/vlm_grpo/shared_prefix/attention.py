"""Attention over packed rows: a completion sees its prompt and itself, nothing of the other completions.

The function is registered with transformers and set once for good: whether a row is packed is told by the `packed`
keyword of the model's forward. Switching the implementation around a forward would let the recomputation of gradient
checkpointing take the other path. Rows that are not packed go through the implementation that the model was loaded
with: sdpa, or a flash attention.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_grpo.shared_prefix import flex_attention
from vlm_grpo.shared_prefix.packing import Group, Layout

NAME = "shared_prefix"
NAME_PREFIX = f"{NAME}_over_"  # what the implementation's name follows, where that is not SDPA
SDPA = "sdpa"


def unpacked_implementation(implementation: str) -> str:
    """Return what rows that are not packed go through under the name of an attention implementation."""
    return SDPA if implementation == NAME else implementation.removeprefix(NAME_PREFIX)


def is_supported(implementation: str) -> bool:
    """Return whether `register` takes this implementation: sdpa or a flash attention of transformers."""
    plain = unpacked_implementation(implementation)
    return plain == SDPA or ("flash" in plain and plain in ALL_MASK_ATTENTION_FUNCTIONS)


def register(plain: str = SDPA) -> str:
    """Make packed rows known to transformers and return the name to set; doing it twice changes nothing.

    Args:
        plain: the implementation for rows that are not packed, as `is_supported` accepts it.
    """
    name = NAME if plain == SDPA else NAME_PREFIX + plain
    ALL_ATTENTION_FUNCTIONS.register(name, partial(attention, plain=plain))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, partial(mask, plain=plain))
    return name


def mask(*, q_length: int, plain: str, **options: Any) -> Tensor | None:
    """Return the mask of rows that are not packed, as transformers' mask interface asks.

    It is sdpa's for one new token, so that decoding over a cache of fixed size has a mask of fixed size: a flash
    attention would have to look up on the host which keys are there.
    """
    return ALL_MASK_ATTENTION_FUNCTIONS[SDPA if q_length == 1 else plain](q_length=q_length, **options)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Layout | None = None,
    plain: str = SDPA,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: query (B, H, L, D), key and value (B, K, L, D) to (B, L, H, D).

    Without `packed` it is the `plain` implementation. With it B is 1; on CUDA FlexAttention takes the whole row,
    elsewhere, or where that cannot be compiled, sdpa takes each group.
    """
    if packed is None:
        is_for_sdpa = attention_mask is not None and attention_mask.ndim == 4  # see `mask`
        function = ALL_ATTENTION_FUNCTIONS[SDPA if is_for_sdpa else plain]
        return function(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    if (
        query.is_cuda
        and query.size(-1) >= flex_attention.MIN_HEAD_DIM
        and (kernel := flex_attention.compiled()) is not None
    ):
        output = flex_attention.packed_attention(query, key, value, packed, scaling, kernel)
        return output.transpose(1, 2).contiguous(), None
    repeats = query.size(1) // key.size(1)  # grouped-query attention: heads that share a key
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    outputs = [part for group in packed.groups for part in _group(group, query, key, value, scaling)]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _group(group: Group, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> list[Tensor]:
    """Return the outputs (1, H, length, D) of a group's prefix and of its segments."""
    outputs, middle = [], group.start + group.prefix
    queries, keys, values = (tensor[:, :, group.start : middle] for tensor in (query, key, value))
    if group.prefix:
        outputs.append(scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling))
    if group.lengths:
        parts = [_pad_segments(tensor[0, :, middle : group.end], group.lengths) for tensor in (query, key, value)]
        rows, _, longest, _ = parts[0].shape
        all_keys, all_values = (
            torch.cat([shared.expand(rows, -1, -1, -1), segment], dim=2)
            for shared, segment in zip((keys, values), parts[1:], strict=True)
        )
        # Padding stands behind the tokens of its segment: causality alone hides it from them.
        seen = torch.ones(longest, group.prefix + longest, dtype=torch.bool, device=query.device).tril(group.prefix)
        output = scaled_dot_product_attention(parts[0], all_keys, all_values, attn_mask=seen, scale=scaling)
        outputs.append(_unpad_segments(output, group.lengths))
    return outputs


def _pad_segments(tensor: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return (H, sum of lengths, D) as (G, H, longest, D), shorter ones padded with zeros."""
    heads, _, width = tensor.shape
    if len(set(lengths)) == 1:
        return tensor.view(heads, len(lengths), lengths[0], width).transpose(0, 1)
    parts = tensor.split(list(lengths), dim=1)
    return torch.stack([pad(part, (0, 0, 0, max(lengths) - part.size(1))) for part in parts])


def _unpad_segments(output: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return (G, H, longest, D) as (1, H, sum of lengths, D)."""
    _, heads, _, width = output.shape
    if len(set(lengths)) == 1:
        return output.transpose(0, 1).reshape(1, heads, -1, width)
    return torch.cat([part[:, :length] for part, length in zip(output, lengths, strict=True)], dim=1)[None]
