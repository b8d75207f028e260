"""Segments of a completion that show images, from tools, and how they join the prompt.

A completion without images needs none of this: its tokens say everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from vlm_grpo.records import ImageRef
from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_visual


@dataclass(frozen=True)
class CompletionSegment:
    """A completion, or a part of one: its tokens, their per-token values, and its images' tensors and references."""

    ids: list[int]
    per_token: dict[str, list[int]]
    visual: dict[str, Tensor]
    refs: list[ImageRef]
    opening: str = ""  # text at its end that already belongs to the next turn of the assistant


EMPTY_SEGMENT = CompletionSegment([], {}, {}, [])


def concat_segments(first: CompletionSegment, second: CompletionSegment) -> CompletionSegment:
    """Return two consecutive parts of a completion as one."""
    return CompletionSegment(
        ids=first.ids + second.ids,
        per_token=_concat_per_token((first.ids, first.per_token), (second.ids, second.per_token)),
        visual=_concat_visual(first.visual, second.visual),
        refs=first.refs + second.refs,
        opening=second.opening,
    )


def with_segment(prompt: EncodedPrompt, segment: CompletionSegment | None) -> EncodedPrompt:
    """Return the prompt with the images of its completion; the prompt itself where the completion has none."""
    if segment is None or not segment.visual:
        return prompt
    visual = _concat_visual(prompt.visual, segment.visual)
    return replace(prompt, segment=segment, visual=visual, refs=prompt.refs + segment.refs, features=None)


def as_next_prompt(prompt: EncodedPrompt, segment: CompletionSegment) -> EncodedPrompt:
    """Return a prompt and the completion so far as the prompt of the next turn."""
    return replace(
        prompt,
        input_ids=prompt.input_ids + segment.ids,
        per_token=_concat_per_token((prompt.input_ids, prompt.per_token), (segment.ids, segment.per_token)),
        visual=_concat_visual(prompt.visual, segment.visual),
        refs=prompt.refs + segment.refs,
        features=None if segment.visual else prompt.features,
        segment=None,
        answer_prefix_length=0,
        opening=segment.opening,
    )


def full_row(prompt: EncodedPrompt) -> EncodedPrompt:
    """Return prompt and completion as one prompt where the completion shows images; else the prompt."""
    if prompt.segment is None:
        return prompt
    text = replace(prompt.segment, visual={}, refs=[])  # the prompt holds the tensors already
    return as_next_prompt(prompt, text)


def row_ids(prompt: EncodedPrompt) -> list[int]:
    """Return the tokens that hold all image placeholders of a row."""
    return prompt.input_ids if prompt.segment is None else prompt.input_ids + prompt.segment.ids


def prompt_refs(prompt: EncodedPrompt) -> list[ImageRef]:
    """Return the images of the prompt alone, without those of its completion."""
    return prompt.refs if prompt.segment is None else prompt.refs[: len(prompt.refs) - len(prompt.segment.refs)]


def _concat_per_token(*parts: tuple[list[int], dict[str, list[int]]]) -> dict[str, list[int]]:
    """Return the per-token values of (tokens, values) parts; 0 where a part has none of a name."""
    names = dict.fromkeys(name for _, values in parts for name in values)
    return {name: [v for ids, values in parts for v in values.get(name) or [0] * len(ids)] for name in names}


def _concat_visual(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return collate_visual([EncodedPrompt([], "", visual=first), EncodedPrompt([], "", visual=second)])
