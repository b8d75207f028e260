"""Find text in a row that a model would interpret as markup: image placeholders and turn tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from vlm_grpo.families import FAMILIES
from vlm_grpo.prompts import MARKER, VIDEO_MARKER
from vlm_grpo.records import Record

# Ordinary text that is a placeholder of some family: only reported if the model is known.
ORDINARY = ("<image>", "<video>", "<img>", "</img>", "[IMG]")
TURNS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_end|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<end_of_utterance>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "[gMASK]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]"),
)
PLACEHOLDERS = tuple(mark for family in FAMILIES.values() for mark in family.placeholders if mark not in ORDINARY)
KNOWN = tuple(dict.fromkeys((*PLACEHOLDERS, *TURNS)))  # of any model
EXPECTED = "plain text: a model interprets this as markup. Remove it; the chat template is applied in training"


def find_markup(record: Record, marks: Sequence[str] | None = None) -> Iterator[str]:
    """Yield the markup found in each text of a record, quoted with its surroundings.

    `<image>` and `<video>` markers of the user are allowed.

    Args:
        marks: special tokens of the model; None means those of all known models.
    """
    pattern = _pattern(KNOWN if marks is None else tuple(marks))
    user_texts = [record.question, *record.options, *(t["content"] for t in record.history if t["role"] == "user")]
    others = [record.system or "", *(t["content"] for t in record.history if t["role"] != "user")]
    for text in (*(text.replace(MARKER, "").replace(VIDEO_MARKER, "") for text in user_texts), *others):
        if match := pattern.search(text):
            yield repr(text[max(0, match.start() - 20) : match.end() + 20])


@lru_cache(maxsize=8)
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if marks else r"(?!)")
