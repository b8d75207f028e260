"""Where an engine's images are in the trainer's tokens: each image's expansion is found in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Expansion:
    """The tokens that an engine puts in the place of one image.

    Attributes:
        tokens: from the first one that stands for a part of the image to the last one.
        image_tokens: those among them that stand for a part of the image; the others separate rows or tiles.
    """

    tokens: Sequence[int]
    image_tokens: frozenset[int]


def place_images(ids: Sequence[int], expansions: Sequence[Expansion], where: str = "") -> list[int]:
    """Return where the expansion of each image begins in a prompt's tokens.

    Args:
        ids: the trainer's tokens, images expanded.
        expansions: of the prompt's images, in order.
        where: the prompt, for errors.

    Raises:
        ValueError: an engine expands an image to other tokens than the trainer, or has another number of images.
    """
    starts: list[int] = []
    end = 0
    for number, expansion in enumerate(expansions, start=1):
        start = _find(ids, expansion.tokens, end)
        between = ids[end : len(ids) if start is None else start]
        if start is None or not expansion.image_tokens.isdisjoint(between):
            raise ValueError(_message(ids, expansion, number, where))
        starts.append(start)
        end = start + len(expansion.tokens)
    known = frozenset[int]().union(*(expansion.image_tokens for expansion in expansions))
    if not known.isdisjoint(ids[end:]):
        raise ValueError(_message(ids, expansions[-1], len(expansions), where))
    return starts


def _find(ids: Sequence[int], tokens: Sequence[int], start: int) -> int | None:
    """Return the first place from `start` on where the tokens stand; None where they do not."""
    tokens, first = list(tokens), tokens[0]
    for place in range(start, len(ids) - len(tokens) + 1):
        if ids[place] == first and list(ids[place : place + len(tokens)]) == tokens:
            return place
    return None


def _message(ids: Sequence[int], expansion: Expansion, number: int, where: str) -> str:
    trainer, engine = (sum(token in expansion.image_tokens for token in each) for each in (ids, expansion.tokens))
    return (
        f"{where or 'a prompt'}: the engine expands image {number} to {len(expansion.tokens)} tokens ({engine} of the "
        f"image) that the trainer's prompt does not have in this place (it has {trainer} tokens of images in all): "
        "engine and trainer process images differently. Give both the same processor and pixel limits, or leave out "
        "--rollout_engine for this model"
    )
