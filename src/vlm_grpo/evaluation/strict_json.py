"""Standard JSON: Python's own encoder writes NaN and infinities, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn


def dumps(value: object, **options: Any) -> str:
    """Return the value as JSON, with null for non-finite numbers; options are those of `json.dumps`."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: object) -> Any:
    """Return a copy of nested mappings and sequences with None for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(item) for item in value]
    return value


def loads(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is not JSON, which excludes NaN and infinities.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
