"""Tasks: each has a prompt, an optional system turn, default rewards with weights, and a metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vlm_grpo.answer_parser import extract_boxed
from vlm_grpo.records import Record
from vlm_grpo.registry import Registry


@dataclass(frozen=True)
class Task:
    """A task for training and evaluation.

    `prompt` is a name in PROMPTS, `rewards` maps names in REWARDS to weights, `metric` is the main reward of an
    evaluation, `system` the system turn of records that have none, `example` a completion in the correct format.
    `answer` is a short description of the format, `method` the accuracy method of records that do not set one.
    """

    name: str
    prompt: str
    rewards: Mapping[str, float]
    metric: str
    system: str | None
    example: str
    answer: str = "think and answer tags"
    method: str | None = None


TASKS: Registry[Task] = Registry(
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
            answer="think tags, then one box as JSON",
            method="iou",
        ),
        "grounding": Task(
            name="grounding",
            prompt="grounding",
            rewards={"iou": 1.0, "format": 1.0},
            metric="iou@0.5",
            system=None,
            example='<answer>{"bbox_2d": [24, 110, 208, 365]}</answer>',
            answer="one box as JSON, no reasoning",
            method="iou",
        ),
        "ovd": Task(
            name="ovd",
            prompt="ovd",
            rewards={"detection": 1.0, "format": 1.0},
            metric="od_ap",
            system=None,
            example=(
                "<think>A cup stands on the left, half of another is at the right edge.</think>\n"
                '<answer>[{"Position": [120, 310, 240, 505], "Confidence": 0.9}, '
                '{"Position": [930, 322, 1000, 498], "Confidence": 0.6}]</answer>'
            ),
            answer="think tags, then a JSON list of boxes (0-1000) with confidence, or None",
            method="detection",
        ),
        "seg": Task(
            name="seg",
            prompt="seg",
            rewards={"mask_iou": 1.0, "format": 1.0},
            metric="mask_iou",
            system=None,
            example=(
                "<think>The plate is the round one on the left.</think>\n"
                '<answer>{"chebyshev": [{"bbox_2d": [112, 141, 510, 706], '
                '"x": [-5, 61, -15, -65, 3, 8, -1, -3], "y": [29, 8, 94, -9, -28, 1, 5, -1]}]}</answer>'
            ),
            answer="think tags, then the outline's box and coefficients as JSON",
            method="mask_iou",
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
            answer="JSON with reasoning_steps and answer",
        ),
        "counting": Task(
            name="counting",
            prompt="counting",
            rewards={"accuracy": 1.0, "format": 1.0},
            metric="accuracy",
            system=None,
            example="<think>Two cubes in front, one behind the sphere.</think>\n<answer>3</answer>",
            answer="think tags, then a number",
        ),
        "math": Task(
            name="math",
            prompt="math",
            rewards={"accuracy": 1.0, "format": 1.0},
            metric="accuracy",
            system=None,
            example="<think>The legs are 3 and 4, so the third side is 5.</think>\n<answer>\\boxed{5}</answer>",
            answer="think tags, then \\boxed{} in answer tags",
            method="math",
        ),
        "gui": Task(
            name="gui",
            prompt="gui",
            rewards={"accuracy": 1.0, "format": 1.0},
            metric="accuracy",
            system=None,
            example='<think>The menu stays closed after the click.</think>\n<answer>["no response"]</answer>',
            answer="think tags, then a JSON list of defects",
            method="all_match",
        ),
    },
)


def ideal_completion(record: Record) -> str:
    """Return a perfect completion for a record: its gold answer in the format of its task.

    A vqa record without reference steps gets a placeholder step, because the format requires one.
    """
    if record.task == "vqa":
        steps = list(record.reference_steps) or ["The image shows the answer."]
        return json.dumps({"reasoning_steps": steps, "answer": gold_text(record.answer)}, ensure_ascii=False)
    answer = f"<answer>{ANSWER_TEXTS.get(record.task, gold_text)(record.answer)}</answer>"
    return answer if record.task == "grounding" else f"<think>The answer can be seen.</think>\n{answer}"


def gold_text(answer: object) -> str:
    """Return the gold answer as a model would write it: text as it is, anything else as JSON."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def boxed(answer: object) -> object:
    """Return four numbers, or their JSON text, as `{"bbox_2d": [...]}`; anything else unchanged."""
    try:
        value = json.loads(answer) if isinstance(answer, str) else answer
    except ValueError:
        return answer
    is_box = isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)
    return {"bbox_2d": value} if is_box else answer


def _box_text(answer: object) -> str:
    return gold_text(boxed(answer))


def _detections_text(answer: object) -> str:
    return gold_text(answer) if answer not in (None, [], "", "[]") else "None"


def _boxed_text(answer: object) -> str:
    r"""Return the answer in `\boxed{}`, after removing dollar signs and an existing box."""
    text = gold_text(answer).strip()
    if text.count("$") == 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return f"\\boxed{{{extract_boxed(text) or text}}}"


# Formatting of the gold answer inside the answer tags; other tasks use `gold_text`.
ANSWER_TEXTS: Mapping[str, Callable[[object], str]] = {
    "rec": _box_text,
    "grounding": _box_text,
    "ovd": _detections_text,
    "math": _boxed_text,
}
