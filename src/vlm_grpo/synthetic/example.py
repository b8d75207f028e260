"""An example of a synthetic data set before it is written: the content of its jsonl line and its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from PIL import Image

from vlm_grpo.records import Row


@dataclass(frozen=True)
class Example:
    """Question, answer and media of an example.

    `question` has an <image> marker for each of `images`, or a <video> marker. A video is a list of `frames`, or an mp4
    file in `clip` (bytes). `columns` are additional columns of the line.
    """

    question: str
    answer: object
    images: tuple[Image.Image, ...] = ()
    frames: tuple[Image.Image, ...] = ()
    clip: bytes = b""
    columns: Row = field(default_factory=dict)


ExampleFactory = Callable[[Random, int, int], Example]  # (random, number of the example, side in pixels)
