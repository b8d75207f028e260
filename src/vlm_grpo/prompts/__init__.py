"""Prompt templates: jinja files that turn a record into chat messages, with `<image>` markers kept in place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm_grpo.records import Record
from vlm_grpo.table import Table

MARKER = "<image>"


@dataclass(frozen=True)
class PromptTemplate:
    """A jinja text with the variables `question`, `options` and `record`."""

    name: str
    text: str

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import Environment, StrictUndefined

        return Environment(undefined=StrictUndefined, keep_trailing_newline=False).from_string(self.text.rstrip("\n"))

    def render(self, record: Record) -> list[dict[str, Any]]:
        """Chat messages whose contents are lists of text and empty image blocks.

        Raises:
            ValueError: more `<image>` markers than images.
        """
        asked = self._compiled.render(question=record.question, options=list(record.options), record=record)
        turns = [{"role": "system", "content": record.system}] if record.system else []
        turns += [*record.history, {"role": "user", "content": asked}]
        markers = sum(turn["content"].count(MARKER) for turn in turns)
        missing = len(record.images) - markers
        if missing < 0:
            raise ValueError(f"{record.where}: {markers} <image> markers for {len(record.images)} images")
        first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
        return [
            {"role": turn["role"], "content": blocks(MARKER * missing * (index == first) + turn["content"])}
            for index, turn in enumerate(turns)
        ]


def blocks(text: str) -> list[dict[str, str]]:
    """Text and image blocks, in the order of the text."""
    parts = [part for part in re.split(f"({MARKER})", text) if part]
    return [{"type": "image"} if part == MARKER else {"type": "text", "text": part} for part in parts]


def load_prompt(path: str | Path) -> PromptTemplate:
    """A user's own template.

    Raises:
        ValueError: no such file, or it is not valid jinja.
    """
    from jinja2 import TemplateSyntaxError

    if not Path(path).is_file():
        raise ValueError(f"--format_prompt: no such file {str(path)!r}")
    template = PromptTemplate(Path(path).stem, Path(path).read_text(encoding="utf-8"))
    try:
        _ = template._compiled
    except TemplateSyntaxError as error:
        raise ValueError(f"--format_prompt {path}:{error.lineno}: {error.message}") from error
    return template


def _shipped(name: str) -> PromptTemplate:
    return PromptTemplate(name, files("vlm_grpo.prompts").joinpath(f"{name}.jinja").read_text(encoding="utf-8"))


PROMPTS: Table[PromptTemplate] = Table(
    "prompt", {name: _shipped(name) for name in ("default", "rec", "vqa", "counting", "gui")}
)
