"""Rows of LLaVA's JSON files: conversations as in this package, whose answers are always text.

Format: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

from __future__ import annotations

from vlm_grpo.data.converters._common import (
    IMAGES,
    SPEAKERS,
    build_conversation,
    image_column,
    image_list,
    other_columns,
    roles_and_texts,
)
from vlm_grpo.records import NewRow, Row


def to_jsonl(row: Row) -> NewRow:
    """Return the row with its JSON answer decoded to a list or object."""
    columns = other_columns(row, ("conversations", *IMAGES), ())
    return {**columns, **image_column(image_list(row)), "conversations": build_conversation(roles_and_texts(row))}


def from_jsonl(row: Row) -> NewRow:
    """Return the row with every answer as text."""
    columns = other_columns(row, ("conversations", *IMAGES), ())
    turns = [{"from": SPEAKERS[role], "value": text} for role, text in roles_and_texts(row)]
    return {**columns, **image_column(image_list(row)), "conversations": turns}
