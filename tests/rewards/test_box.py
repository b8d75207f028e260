from __future__ import annotations

import pytest

from vlm_grpo.rewards import score

TRUTH = {"bbox_2d": [0, 0, 10, 10]}


def boxed(text: str) -> str:
    return f"<think>a</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("iou", "[0, 0, 10, 10]", 1.0),
        ("iou", "[0, 0, 10, 5]", 0.5),  # half of the union
        ("iou", "(5,0),(15,10)", 1 / 3),  # 50 shared of 150
        ("iou", "[10, 10, 0, 0]", 0.0),
        ("iou", "[0, 0, 0, 10]", 0.0),
        ("iou", "[-5, 0, 10, 10]", 1.0),  # clamped
        ("iou", "[0,0,10,10] [0,0,10,10]", 0.0),  # several boxes are no answer
        ("iou", "None", 0.0),
        ("iou", "[0, 0, 1000, 1000]", 1e-4),
        ("iou@0.5", "[0, 0, 10, 5]", 0.0),
        ("iou@0.5", "[0, 0, 10, 6]", 1.0),
        ("iou^2", "[0, 0, 10, 5]", 0.25),
        ("center", "[4, 4, 6, 6]", 1.0),
        ("center", "[20, 20, 30, 30]", 0.0),
        ("giou", "[0, 0, 10, 10]", 1.0),
        ("giou", "[10, 0, 20, 10]", 0.5),  # touching: IoU 0, hull equals union
    ],
)
def test_box_rewards(name: str, answer: str, expected: float):
    assert score(name, boxed(answer), answer=TRUTH) == pytest.approx(expected)


def test_no_true_box_is_not_applicable():
    assert score("iou", boxed("[0, 0, 1, 1]"), answer="red") is None
