"""Per-token inputs of a forward beside the token ids: attention mask, positions, token types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_grpo.records import ModelInputs

MASK = "attention_mask"
POSITIONS = "position_ids"
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


@dataclass(frozen=True)
class TokenFields:
    """The per-token inputs of rows that are being decoded: the mask of all tokens, the rest of the newest token alone.

    Attributes:
        fields: (B, L) mask, (B, 1) token types, (B, 1) or (k, B, 1) positions; what the model does not take is missing.
    """

    fields: Mapping[str, Tensor]

    @classmethod
    def from_prompts(cls, prepared: ModelInputs) -> TokenFields:
        """Return those of the last token of each prompt; `prepared` has (U, P) and (k, U, P) fields."""
        known = {name: prepared.get(name) for name in (MASK, POSITIONS, *TOKEN_TYPES)}
        fields = {name: value for name, value in known.items() if isinstance(value, Tensor)}
        return cls({name: value if name == MASK else value[..., -1:] for name, value in fields.items()})

    def select(self, rows: Tensor) -> TokenFields:
        """Return those of some rows; a row may come several times."""
        return TokenFields({name: _select(value, rows) for name, value in self.fields.items()})

    def next(self) -> TokenFields:
        """Return those of the next token: attended to, of type text, one position further."""
        return TokenFields({name: _next(name, value) for name, value in self.fields.items()})


def _select(value: Tensor, rows: Tensor) -> Tensor:
    """Select rows of (B, L) or (k, B, L); a single row is that of every prompt."""
    return value.index_select(-2, rows if value.size(-2) > 1 else torch.zeros_like(rows))


def _next(name: str, value: Tensor) -> Tensor:
    if name == MASK:
        return torch.cat([value, value.new_ones(len(value), 1)], dim=1)
    if name == POSITIONS:
        return value + 1
    return value if name == "token_type_ids" else torch.zeros_like(value)  # as `generate` does
