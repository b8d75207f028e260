"""The true answer of a record as text. How it is compared is each reward's own."""

from __future__ import annotations

import json
from typing import Any

from vlm_grpo.text import extract_answer

encode = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes one for each call


def gold(value: Any) -> str:
    """The true answer as text: tags unwrapped, lists and objects as JSON."""
    if isinstance(value, str):
        return (extract_answer(value) if "<answer>" in value else None) or value.strip()
    return encode(value)
