"""Example cards of a report: images, the question, the truth and the answers to it."""

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
    """One example: images as PNG bytes, the question, the truth and one or more answers to it."""

    images: tuple[bytes, ...]
    question: str
    truth: str
    answers: tuple[CardAnswer, ...]
