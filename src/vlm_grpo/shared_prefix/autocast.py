"""The type of keys and values under autocast, which `scaled_dot_product_attention` finds out for itself.

Weights of 32 bits give queries and keys of 32 bits there, since position embeddings turn them in 32 bits, and values
of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_autocast_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor in the type to which autocast casts it before it is attended; as it is outside of autocast."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
