"""A task names its prompt, its system turn, its default rewards with weights, and its metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_grpo.records import Record
from vlm_grpo.table import Table


@dataclass(frozen=True)
class Task:
    """What training and evaluation need to know of a kind of question.

    `prompt` is a name in PROMPTS, `rewards` maps names in REWARDS to weights, `metric` is the reward that evaluation
    reports first, `system` the system turn of records that have none, `example` a completion of the right form.
    """

    name: str
    prompt: str
    rewards: Mapping[str, float]
    metric: str
    system: str | None
    example: str


TASKS: Table[Task] = Table(
    "task",
    {
        "default": Task(
            name="default",
            prompt="default",
            rewards={"accuracy": 1.0, "format": 1.0},
            metric="accuracy",
            system=None,
            example="<think>The traffic light at the corner is lit at the top.</think>\n<answer>red</answer>",
        ),
        "rec": Task(
            name="rec",
            prompt="rec",
            rewards={"iou": 1.0, "format": 1.0},
            metric="iou@0.5",
            system=None,
            example=(
                "<think>The dog on the left wears a blue collar.</think>\n"
                '<answer>{"bbox_2d": [24, 110, 208, 365]}</answer>'
            ),
        ),
        "vqa": Task(
            name="vqa",
            prompt="vqa",
            rewards={"format": 1.0, "accuracy": 1.0, "reasoning": 1.0},
            metric="accuracy",
            system=None,
            example=(
                '{"reasoning_steps": ["The sign above the door reads CAFE.", "Two people sit at the window."], '
                '"answer": "2"}'
            ),
        ),
        "counting": Task(
            name="counting",
            prompt="counting",
            rewards={"accuracy": 1.0, "format": 1.0},
            metric="accuracy",
            system=None,
            example="<think>Two cubes in front, one behind the sphere.</think>\n<answer>3</answer>",
        ),
        "gui": Task(
            name="gui",
            prompt="gui",
            rewards={"accuracy": 1.0, "format": 1.0},
            metric="accuracy",
            system=None,
            example='<think>The menu stays closed after the click.</think>\n<answer>["no response"]</answer>',
        ),
    },
)


def ideal_completion(record: Record) -> str:
    """The completion that a perfect model would write for a record: its gold answer in the form of its task.

    A vqa record without reference steps gets one step, so that the form is right.
    """
    if record.task == "vqa":
        steps = list(record.reference_steps) or ["The image shows the answer."]
        return json.dumps({"reasoning_steps": steps, "answer": gold_text(record.answer)}, ensure_ascii=False)
    answer = boxed(record.answer) if record.task == "rec" else record.answer
    return f"<think>The answer can be seen.</think>\n<answer>{gold_text(answer)}</answer>"


def gold_text(answer: Any) -> str:
    """The gold answer as a model would write it: text as it is, anything else as JSON."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def boxed(answer: Any) -> Any:
    """Four numbers, or their JSON text, as `{"bbox_2d": [...]}`; anything else as it is."""
    try:
        value = json.loads(answer) if isinstance(answer, str) else answer
    except ValueError:
        return answer
    is_box = isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)
    return {"bbox_2d": value} if is_box else answer
