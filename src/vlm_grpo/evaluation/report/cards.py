"""Example cards of a report: images, question, gold answer and answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CardAnswer:
    """An answer and whether it is correct; None is undecided."""

    label: str
    text: str
    is_right: bool | None = None


@dataclass(frozen=True)
class ExampleCard:
    """One example: images as PNG bytes, question, gold answer and one or more answers."""

    images: tuple[bytes, ...]
    question: str
    truth: str
    answers: tuple[CardAnswer, ...]
