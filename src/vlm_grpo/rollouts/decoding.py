"""From generated tokens to the text of the assistant's turn: the prompt's part of it, and what the model wrote."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trl.chat_template_utils import parse_response

from vlm_grpo.answer_parser import thinking_start
from vlm_grpo.records import Completion, NewRow, Row
from vlm_grpo.rewards.adapter import WHOLE_TURNS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from vlm_grpo.rollouts.encoder import EncodedPrompt

logger = logging.getLogger(__name__)

# Special tokens that are content: marks of thoughts, boxes and tool calls. TRL's decoding drops all special tokens.
MEANINGFUL = re.compile(
    r"think|channel|box|quad|object_ref|</?ref>|loc\d|tool.?call|call.?id|arg|function|parameter|\"", re.I
)


class TurnDecoder:
    """Decodes completions without end, padding and role tokens, but with special tokens that are content."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {number: token.content for number, token in added.items() if token.special}
        self._kept_ids = {number for number, content in special.items() if MEANINGFUL.search(content)}
        self._dropped_ids = set(special) - self._kept_ids

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens of one completion."""
        if self._kept_ids.isdisjoint(ids):
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return str(self.tokenizer.decode([number for number in ids if number not in self._dropped_ids]))


def markup_tokens(processor: ProcessorMixin) -> tuple[str, ...]:
    """Return the tokens that only a processor or chat template may write: special ones that are no part of answers."""
    tokenizer = getattr(processor, "tokenizer", processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = [token.content for token in added if token.special and not MEANINGFUL.search(token.content)]
    placeholders = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
    return tuple(dict.fromkeys([*special, *(mark for mark in placeholders if isinstance(mark, str))]))


def whole_turn(opening: str, text: str, prompt: object) -> Completion:
    """Return the turn that a completion is part of, in the form of its prompt: messages, or text."""
    return opening + text if isinstance(prompt, str) else [{"role": "assistant", "content": opening + text}]


def completion_messages(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    ids: Sequence[list[int]],
    *,
    parses_responses: bool,
) -> list[Completion]:
    """Return completions in the form of their prompts: a message of the assistant, or text.

    Args:
        tokenizer: of the model.
        prompts: of the completions.
        ids: their tokens.
        parses_responses: whether a tokenizer that knows the model's format of responses splits them, as GRPO's does.
    """
    names = ("response_template", "response_schema")
    if parses_responses and any(getattr(tokenizer, name, None) is not None for name in names):
        pairs = zip(prompts, ids, strict=True)
        return [[parse_response(tokenizer, row, prefix=prompt.input_ids)] for prompt, row in pairs]
    texts = tokenizer.batch_decode(list(ids), skip_special_tokens=True)
    return [
        text if isinstance(prompt.messages, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def add_turns(rows: Sequence[Row], openings: Sequence[str], turns: Sequence[Completion]) -> list[NewRow]:
    """Return the rows with the columns that pass the assistant's turns to rewards."""
    columns = zip(rows, openings, turns, strict=True)
    return [{**row, "turn_opening": opening, WHOLE_TURNS: turn} for row, opening, turn in columns]


def warn_about_tags(opening: str, prompt: object) -> bool:
    """Warn where a prompt asks for <think> tags that the chat template writes itself, and return whether it does."""
    has_conflict = thinking_start(opening) < len(opening) and "<think>" in json.dumps(prompt, default=str)
    if has_conflict:
        logger.warning(
            "prompts ask for <think> tags, but the chat template writes %r itself: use load_dataset(..., "
            "think_tags=False), or leave the tags out of your prompts",
            opening,
        )
    return has_conflict
