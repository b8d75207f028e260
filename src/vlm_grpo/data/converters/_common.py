"""Helpers of the converters: turns, images and answers of a row in the conversations format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from vlm_grpo.data.conversations import ROLES
from vlm_grpo.data.converters.roundtrip import UnsupportedField
from vlm_grpo.records import JsonObject, NewRow, Row

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
IMAGES = ("images", "image")


def roles_and_texts(row: Row) -> list[tuple[str, str]]:
    """Return the conversation as (role, text) pairs; an answer that is not text becomes JSON.

    Raises:
        UnsupportedField: the value is not a list of turns, or a user or system turn is not text.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UnsupportedField("conversations", turns, "a list of turns: human, then gpt")
    return [_turn(turn, f"conversations[{number}]") for number, turn in enumerate(turns)]


def _turn(turn: object, field: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise UnsupportedField(field, turn, '{"from": ..., "value": ...}')
    speaker = turn.get("from", turn.get("role"))
    value = turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise UnsupportedField(f"{field}.from", speaker, f"one of {', '.join(ROLES)}")
    if isinstance(value, str):
        return ROLES[speaker], value
    if value is None or ROLES[speaker] != "assistant":
        raise UnsupportedField(f"{field}.value", value, "text")
    return "assistant", answer_text(value)


def build_conversation(pairs: list[tuple[str, str]]) -> list[JsonObject]:
    """Return the turns of (role, text) pairs; the last answer is decoded if it is JSON as `as_text` writes it."""
    turns: list[JsonObject] = [{"from": SPEAKERS[role], "value": text} for role, text in pairs]
    if pairs and pairs[-1][0] == "assistant":
        turns[-1]["value"] = parse_answer_text(pairs[-1][1])
    return turns


def answer_text(value: object) -> str:
    """Return an answer as text; lists and objects become JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_answer_text(text: str) -> object:
    """Invert `as_text`: decode JSON that it wrote; return any other text unchanged."""
    if not text.startswith(("{", "[")):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if answer_text(value) == text else text


def image_list(row: Row) -> list[object]:
    """Return the images of a row in the conversations format."""
    value: object = next((row[name] for name in IMAGES if row.get(name)), [])
    return list(value) if isinstance(value, list) else [value]


def image_column(images: Sequence[object]) -> NewRow:
    """Return the image column for these images: none, a single one, or a list."""
    return {} if not images else {"image": images[0] if len(images) == 1 else images}


def other_columns(row: Row, used: tuple[str, ...], reserved: tuple[str, ...]) -> NewRow:
    """Return the columns that are not `used`; they keep their names in the other format.

    Raises:
        UnsupportedField: a column has a name in `taken`, which the other format uses itself.
    """
    columns = {name: value for name, value in row.items() if name not in used}
    for name in reserved:
        if name in columns:
            raise UnsupportedField(name, columns[name], "no column of this name, which the other format uses itself")
    return columns
