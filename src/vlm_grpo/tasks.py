"""A task names its prompt, its default rewards with weights, and its metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_grpo.prompts import PROMPTS, PromptTemplate
from vlm_grpo.table import Table


@dataclass(frozen=True)
class Task:
    """`example` is a whole completion of the right form."""

    name: str
    rewards: Mapping[str, float]
    metric: str
    example: str

    @property
    def prompt(self) -> PromptTemplate:
        """The template of the same name."""
        return PROMPTS[self.name]


_SEEN = "<think>I look at the image.</think>"

TASKS: Table[Task] = Table(
    "task",
    {
        "default": Task("default", {"accuracy": 1.0, "format": 1.0}, "accuracy", f"{_SEEN}<answer>red</answer>"),
        "rec": Task(
            "rec",
            {"iou": 1.0, "format": 1.0},
            "iou@0.5",
            f'{_SEEN}<answer>{{"bbox_2d": [10, 20, 110, 220]}}</answer>',
        ),
        "vqa": Task(
            "vqa",
            {"format": 1.0, "accuracy": 1.0},
            "accuracy",
            '{"reasoning_steps": ["The phone shows the word NOKIA."], "answer": "nokia"}',
        ),
        "counting": Task("counting", {"accuracy": 1.0, "format": 1.0}, "accuracy", f"{_SEEN}<answer>3</answer>"),
        "gui": Task("gui", {"accuracy": 1.0, "format": 1.0}, "accuracy", f'{_SEEN}<answer>["No response"]</answer>'),
    },
)
