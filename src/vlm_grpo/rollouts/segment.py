"""Rows whose completion shows images, from tools: what comes after the prompt, and how it joins the prompt.

A completion without images needs none of this: its tokens say everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from vlm_grpo.records import ImageRef
from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_visual


@dataclass(frozen=True)
class CompletionSegment:
    """A completion with images in it, from tools: its tokens, their per-token values, and the images' tensors."""

    ids: list[int]
    per_token: dict[str, list[int]]
    visual: dict[str, Tensor]
    refs: list[ImageRef]
    opening: str = ""  # at its end, what is written of the turn that follows


EMPTY_SEGMENT = CompletionSegment([], {}, {}, [])


def concat_segments(first: CompletionSegment, second: CompletionSegment) -> CompletionSegment:
    """One part of a completion and the next as one."""
    return CompletionSegment(
        ids=first.ids + second.ids,
        per_token=_joined_values((first.ids, first.per_token), (second.ids, second.per_token)),
        visual=_joined_visual(first.visual, second.visual),
        refs=first.refs + second.refs,
        opening=second.opening,
    )


def with_segment(sample: EncodedPrompt, later: CompletionSegment | None) -> EncodedPrompt:
    """The row of a prompt and a completion that shows images; the prompt itself where it shows none."""
    if later is None or not later.visual:
        return sample
    visual = _joined_visual(sample.visual, later.visual)
    return replace(sample, later=later, visual=visual, refs=sample.refs + later.refs, features=None)


def as_next_prompt(sample: EncodedPrompt, later: CompletionSegment) -> EncodedPrompt:
    """A prompt and what came after it as the prompt of the next turn."""
    return replace(
        sample,
        input_ids=sample.input_ids + later.ids,
        per_token=_joined_values((sample.input_ids, sample.per_token), (later.ids, later.per_token)),
        visual=_joined_visual(sample.visual, later.visual),
        refs=sample.refs + later.refs,
        features=None if later.visual else sample.features,
        later=None,
        begun=0,
        opening=later.opening,
    )


def full_row(sample: EncodedPrompt) -> EncodedPrompt:
    """The row as if it were all prompt, where its completion shows images; else the prompt."""
    if sample.later is None:
        return sample
    text = replace(sample.later, visual={}, refs=[])  # the row holds the tensors already
    return as_next_prompt(sample, text)


def row_ids(sample: EncodedPrompt) -> list[int]:
    """The tokens in which all images of a row are."""
    return sample.input_ids if sample.later is None else sample.input_ids + sample.later.ids


def prompt_refs(sample: EncodedPrompt) -> list[ImageRef]:
    """The images of the prompt alone."""
    return sample.refs if sample.later is None else sample.refs[: len(sample.refs) - len(sample.later.refs)]


def _joined_values(*parts: tuple[list[int], dict[str, list[int]]]) -> dict[str, list[int]]:
    """Per-token values of parts, given with their tokens; 0 where a part has none of a name."""
    names = dict.fromkeys(name for _, values in parts for name in values)
    return {name: [v for ids, values in parts for v in values.get(name) or [0] * len(ids)] for name in names}


def _joined_visual(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return collate_visual([EncodedPrompt([], "", visual=first), EncodedPrompt([], "", visual=second)])
