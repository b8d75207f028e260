"""Names that vLLM 0.30 imports from transformers and transformers 5.23 no longer has: LLaVA and Mistral3 load again.

vLLM calls `register` in each of its processes, wherever this package is installed (the entry point in setup.py). It is
not needed from the vLLM on that has pull request 56496.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def register() -> None:
    """Add the former names to transformers' Pixtral module, unless it has them."""
    from transformers import PixtralVisionConfig
    from transformers.models.pixtral import modeling_pixtral

    if hasattr(modeling_pixtral, "PixtralRotaryEmbedding"):
        return

    class PixtralRotaryEmbedding(modeling_pixtral.PixtralVisionRotaryEmbedding):
        """Today's class with the former one's arguments."""

        def __init__(self, config: PixtralVisionConfig, device: torch.device | None = None) -> None:
            super().__init__(config)
            self.to(device)

    vars(modeling_pixtral).update(
        PixtralRotaryEmbedding=PixtralRotaryEmbedding, position_ids_in_meshgrid=position_ids_in_meshgrid
    )


def position_ids_in_meshgrid(patches: Sequence[Tensor], max_width: int) -> Tensor:
    """Return the row and column of each patch of images (..., H, W), as today's class takes them.

    Args:
        patches: of each image.
        max_width: is not needed; the former class counted patches by it.

    Returns:
        (patches, 2)
    """
    grids = (torch.meshgrid(*(torch.arange(size) for size in each.shape[-2:]), indexing="ij") for each in patches)
    return torch.cat([torch.stack([grid.flatten() for grid in pair], dim=-1) for pair in grids])
