"""What one form of a row has and the other has no place for, kept beside it so that the way back gives an equal row.

It is kept only where something would be lost, and used only while the rest of the row is as it was written: whoever
edits a converted row gets the edited row back, not the old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from vlm_grpo.data.errors import show_value

KEPT = "kept"  # the column
Row = dict[str, Any]


class Unfit(ValueError):
    """A row has something that the other form cannot say: in which field, what was found, what was expected."""

    def __init__(self, field: str, found: Any, expected: str) -> None:
        shown = found if isinstance(found, str) and "\n" not in found and len(found) < 70 else show_value(found)
        self.cells = field, shown, expected
        super().__init__(": ".join(self.cells))


def convert_row(row: Row, form: str, there: Callable[[Row], Row], back: Callable[[Row], Row], target: str) -> Row:
    """A row of `form` as a row of `target`, from which the same call the other way gives an equal row.

    Raises:
        Unfit: the target cannot say what the row says.
    """
    plain, kept = _taken(row, target)
    made = there(plain)
    if kept is not None:
        return {**{name: value for name, value in made.items() if name not in kept["drop"]}, **kept["set"]}
    again = back(made)
    if digest(again) == digest(plain):
        return made
    if KEPT in made:
        raise Unfit(KEPT, made[KEPT], "no column of this name")
    lost = {name: value for name, value in plain.items() if name not in again or digest(again[name]) != digest(value)}
    drop = [name for name in again if name not in plain]
    return {**made, KEPT: {"form": form, "of": digest(made), "set": lost, "drop": drop}}


def _taken(row: Row, target: str) -> tuple[Row, Row | None]:
    """The row without what was kept for `target`, and that, unless the row has been edited since."""
    kept = row.get(KEPT)
    if not isinstance(kept, dict) or kept.get("form") != target:
        return row, None
    plain = {name: value for name, value in row.items() if name != KEPT}
    return plain, kept if kept.get("of") == digest(plain) else None


def digest(value: Any) -> str:
    """Equal for equal JSON values, whatever the order of keys; 1, 1.0 and true differ."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
