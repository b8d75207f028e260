from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_grpo.boxes import Box, convert, extent
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
        ("iou", "<|begin_of_box|>[0, 0, 10, 5]<|end_of_box|>", 0.5),  # GLM's markers
        ("iou", "<|begin_of_box|>[[0, 0, 10, 5]]<|end_of_box|>", 0.5),
        ("iou", "<|box_start|>(0,0),(10,5)<|box_end|>", 0.5),  # Qwen's
        ("iou", "<box>[[0, 0, 10, 5]]</box>", 0.5),  # InternVL's
        ("iou", f"[0, 0, 10, {'9' * 400}]", 0.0),  # would be infinite, its overlap NaN, and the row left out
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


SIZES = {"image_sizes": [(200, 100)], "processed_sizes": [(112, 56)]}


@pytest.mark.parametrize(
    ("space", "answer"),
    [
        ("original", [20, 10, 100, 50]),
        ("resized", [11.2, 5.6, 56, 28]),
        ("thousand", [100, 100, 500, 500]),
        ("unit", [0.1, 0.1, 0.5, 0.5]),
    ],
)
def test_boxes_are_compared_in_the_space_of_the_answer(space: str, answer: list[float]):
    """A tenth to a half of each side of a 200 x 100 image."""
    for truth, named in (([20, 10, 100, 50], {}), ([100, 100, 500, 500], {"box_space": "thousand"})):
        columns = {"answer": truth, "answer_space": space, **SIZES, **named}
        assert score("iou", boxed(str(answer)), **columns) == pytest.approx(1.0)
        assert score("center", boxed(str(answer)), **columns) == 1.0
    if space != "original":
        assert score("iou", boxed(str(answer)), answer=[20, 10, 100, 50]) < 0.9  # without facts: as they stand


def test_the_box_of_a_later_image_uses_its_size():
    sizes = {"image_sizes": [(10, 10), (200, 100)], "processed_sizes": [None, (112, 56)]}
    columns = {"answer": [20, 10, 100, 50], "answer_space": "resized", **sizes}
    assert score("iou", boxed("[11.2, 5.6, 56, 28]"), **columns, box_image=1) == pytest.approx(1.0)
    assert score("iou", boxed("[20, 10, 100, 50]"), **columns) == 1.0  # the first image has no known size: as it is


def test_an_unknown_space_is_an_error():
    with pytest.raises(
        RuntimeError, match="a coordinate space must be one of original, resized, thousand, unit, got 'x'"
    ):
        score("iou", boxed("[1, 2, 3, 4]"), answer=[1, 2, 3, 4], answer_space="resized", box_space="x", **SIZES)


@pytest.mark.parametrize("space", ["resized", "thousand"])
@given(
    width=st.integers(28, 4000),
    height=st.integers(28, 4000),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    scale=st.floats(0.3, 3),
)
def test_rounded_coordinates_come_back_within_half_a_unit(space: str, width, height, x, y, scale):
    """Half a unit of the coarser of the two spaces."""
    original, resized = (width, height), (round(width * scale), round(height * scale))
    box = Box(x * width, y * height, width, height)
    there = convert(box, "original", space, original, resized)
    back = convert(Box(*map(round, there)), space, "original", original, resized)
    target = extent(space, original, resized)
    for size, unit, before, after in zip(original * 2, target * 2, box, back, strict=True):
        assert abs(before - after) <= 0.5 * size / unit + 1e-6
