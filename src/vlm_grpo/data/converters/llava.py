"""Rows of LLaVA's json: a list of the same conversations as this package's, whose answers are always text.

Format: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

from __future__ import annotations

from vlm_grpo.data.converters._common import (
    IMAGES,
    SPEAKERS,
    conversation,
    image_list,
    one_or_list,
    others,
    roles_and_texts,
)
from vlm_grpo.data.converters.roundtrip import Row


def to_ours(row: Row) -> Row:
    """The same row; an answer that is the JSON text of a list or object becomes that."""
    rest = others(row, ("conversations", *IMAGES), ())
    return {**rest, **one_or_list(image_list(row)), "conversations": conversation(roles_and_texts(row))}


def from_ours(row: Row) -> Row:
    """The same row with text for every answer."""
    rest = others(row, ("conversations", *IMAGES), ())
    turns = [{"from": SPEAKERS[role], "value": text} for role, text in roles_and_texts(row)]
    return {**rest, **one_or_list(image_list(row)), "conversations": turns}
