"""Keep fields the target format cannot represent, so that a round trip is lossless.

They are stored only if something would be lost, and used only if the rest of the row is unchanged: a converted
row that was edited converts back to the edited row, not to the old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from vlm_grpo.data.errors import show_value
from vlm_grpo.records import Row

ROUNDTRIP = "kept"  # the column; part of the file format


class UnsupportedField(ValueError):
    """A row has a field that the target format cannot represent: the field, its value and what was expected."""

    def __init__(self, field: str, found: object, expected: str) -> None:
        found_text = found if isinstance(found, str) and "\n" not in found and len(found) < 70 else show_value(found)
        self.cells = field, found_text, expected
        super().__init__(": ".join(self.cells))


def convert_row(row: Row, source: str, forward: Callable[[Row], Row], back: Callable[[Row], Row], target: str) -> Row:
    """Convert a row of format `source` to `target`; the reverse call restores an equal row.

    Raises:
        UnsupportedField: the target cannot represent the row.
    """
    plain, metadata = _split_roundtrip(row, target)
    result = forward(plain)
    if metadata is not None:
        return {**{name: value for name, value in result.items() if name not in metadata["drop"]}, **metadata["set"]}
    restored = back(result)
    if json_digest(restored) == json_digest(plain):
        return result
    if ROUNDTRIP in result:
        raise UnsupportedField(ROUNDTRIP, result[ROUNDTRIP], "no column of this name")
    lost = {name: value for name, value in plain.items() if not _is_restored(name, value, restored)}
    drop = [name for name in restored if name not in plain]
    return {**result, ROUNDTRIP: {"form": source, "of": json_digest(result), "set": lost, "drop": drop}}


def _is_restored(name: str, value: object, restored: Row) -> bool:
    return name in restored and json_digest(restored[name]) == json_digest(value)


def _split_roundtrip(row: Row, target: str) -> tuple[Row, Row | None]:
    """Return the row without the round-trip metadata for `target`, and the metadata unless the row was edited since."""
    metadata = row.get(ROUNDTRIP)
    if not isinstance(metadata, dict) or metadata.get("form") != target:
        return row, None
    plain = {name: value for name, value in row.items() if name != ROUNDTRIP}
    return plain, metadata if metadata.get("of") == json_digest(plain) else None


def json_digest(value: object) -> str:
    """Return a digest of a JSON value that ignores the order of keys; 1, 1.0 and true differ."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
