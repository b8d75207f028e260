"""Prompt templates: jinja files that render a record as chat messages, with `<image>` and `<video>` in their positions.

Template variables are `question` (also `content`, as in RLLaVA's templates), `options` (texts), `lettered` (options as
lettered lines), `record`, and `think_tags`: whether to ask for <think> tags, which some chat templates write
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import Message, Record
from vlm_grpo.registry import Registry, unknown_name

if TYPE_CHECKING:
    from jinja2 import Template

MARKER = "<image>"
VIDEO_MARKER = "<video>"
LEADING_MARKERS = re.compile(rf"\s*(?:{MARKER}\s*)+")
VARIABLES = ("question", "content", "options", "lettered", "record", "think_tags")


@dataclass(frozen=True)
class PromptTemplate:
    """A jinja template of the last user turn; `path` is the file of a user-defined template."""

    name: str
    text: str
    path: str | None = None

    def __getstate__(self) -> dict[str, object]:
        """Exclude the compiled template, which cannot be pickled."""
        return {"name": self.name, "text": self.text, "path": self.path}

    @cached_property
    def _compiled(self) -> Template:
        from jinja2 import Environment, StrictUndefined

        return Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(self.text)

    def render(self, record: Record, system: str | None = None, *, think_tags: bool = True) -> list[Message]:
        """Return chat messages whose contents are lists of text blocks and empty image blocks.

        `system` is used if the record has no system turn. Only markers in user turns are replaced by images; images
        without a marker are placed first.

        Raises:
            ValueError: the template fails, or has more image markers than the record has images.
        """
        system = record.system if record.system is not None else system
        turns = [{"role": "system", "content": system}] if system else []
        turns += [dict(turn) for turn in record.history]
        turns.append({"role": "user", "content": self._user_turn(record, think_tags)})
        user_turns = [turn for turn in turns if turn["role"] == "user"]
        missing = len(record.images) - sum(turn["content"].count(MARKER) for turn in user_turns)
        if missing < 0:
            raise ValueError(
                f"{record.where}: prompt {self.path or self.name} has {len(record.images) - missing} {MARKER} markers, "
                f"but the record has {len(record.images)} images; a template must contain the question only once"
            )
        videos = len(record.videos) - sum(turn["content"].count(VIDEO_MARKER) for turn in user_turns)
        user_turns[0]["content"] = MARKER * missing + VIDEO_MARKER * max(0, videos) + user_turns[0]["content"]
        kinds = {MARKER: "image", **({VIDEO_MARKER: "video"} if record.videos else {})}
        return [{"role": turn["role"], "content": _blocks(turn, kinds)} for turn in turns]

    def _user_turn(self, record: Record, think_tags: bool) -> str:
        """Return the last turn, with image markers from the template if it has one for each image, else the question.

        In the second case, markers at the start of the template are removed.
        """
        template_markers, question_markers = self.text.count(MARKER), record.question.count(MARKER)
        before = sum(turn["content"].count(MARKER) for turn in record.history if turn["role"] == "user")
        images = len(record.images) - before
        if not template_markers or template_markers + question_markers <= images:
            return self._question(record, think_tags)
        if template_markers == images:
            record = replace(record, question=record.question.replace(MARKER, ""))
            return self._question(record, think_tags)
        text = self._question(record, think_tags)
        return LEADING_MARKERS.sub("", text) if LEADING_MARKERS.match(self.text) else text

    def _question(self, record: Record, think_tags: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._compiled.render(
                question=record.question,
                content=record.question,
                options=list(record.options),
                lettered="\n".join(lettered(record.options)),
                record=record,
                think_tags=think_tags,
            ).strip("\n")
        except (TemplateError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"{record.where}: prompt {self.path or self.name}: {error}") from error


def lettered(options: tuple[str, ...]) -> list[str]:
    """Return options as lines: `A. red`, `B. blue`."""
    return [f"{chr(ord('A') + number)}. {option}" for number, option in enumerate(options)]


def _blocks(turn: dict[str, str], kinds: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a user turn's text with an empty block for every marker; `kinds` maps markers to block types."""
    if turn["role"] != "user":
        return [{"type": "text", "text": turn["content"]}]
    parts = [part for part in re.split(f"({'|'.join(kinds)})", turn["content"]) if part]
    return [{"type": kinds[part]} if part in kinds else {"type": "text", "text": part} for part in parts]


def load_prompt(path: str | Path) -> PromptTemplate:
    """Load a user-defined template.

    Raises:
        ValueError: the file does not exist, is not UTF-8 or valid jinja, uses an unknown variable or not the question.
    """
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        check_regular(path)
        text = Path(path).read_text(encoding="utf-8-sig")
        used = meta.find_undeclared_variables(Environment().parse(text))
    except OSError as error:
        raise ValueError(f"--format_prompt {path}: {error.strerror or error}; expected a jinja file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--format_prompt {path}: must be UTF-8: {error}") from error
    except TemplateSyntaxError as error:
        raise ValueError(f"--format_prompt {path}:{error.lineno}: {error.message}") from error
    for name in sorted(used - set(VARIABLES)):
        raise ValueError(f"--format_prompt {path}: {unknown_name('variable', name, list(VARIABLES))}")
    if not used & {"question", "content", "record"}:
        raise ValueError(f"--format_prompt {path}: the template must contain {{{{ question }}}}")
    return PromptTemplate(Path(path).stem, text, str(path))


def _shipped(name: str) -> PromptTemplate:
    return PromptTemplate(name, files("vlm_grpo.prompts").joinpath(f"{name}.jinja").read_text(encoding="utf-8"))


PROMPTS: Registry[PromptTemplate] = Registry(
    "prompt",
    {
        name: _shipped(name)
        for name in (
            "default",
            "rec",
            "grounding",
            "ovd",
            "seg",
            "vqa",
            "counting",
            "math",
            "gui",
        )
    },
)
