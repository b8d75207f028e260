"""visual_crop: what is cut out is the original's, in every coordinate space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_grpo.envs.environment import ToolError
from vlm_grpo.envs.visual_crop import SMALLEST, VisualCrop
from vlm_grpo.records import Record


def begun(answer_space: str | None = "resized", **options: Any) -> VisualCrop:
    """An episode on 200 x 100 pixels whose red is the column and green the row; the model sees 100 x 50."""
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(200)[None], np.arange(100)[:, None]
    environment = VisualCrop(**options)
    environment.reset(record=Record(id="a", question="?", answer="seven"))
    environment.see(images=[Image.fromarray(pixels)], processed_sizes=[(100, 50)], answer_space=answer_space)
    return environment


@pytest.mark.parametrize(
    ("space", "box"),
    [
        ("resized", [20, 10, 60, 40]),
        ("thousand", [200, 200, 600, 800]),
        ("unit", [0.2, 0.2, 0.6, 0.8]),
        ("original", [40, 20, 120, 80]),
        (None, [40, 20, 120, 80]),  # a family of which nothing is known: pixels
    ],
)
def test_crops_are_of_the_original(space: str | None, box: list[float]):
    (block,) = begun(space).zoom(box)
    crop = np.asarray(block["image"])
    assert crop.shape == (60, 80, 3)
    assert crop[0, 0].tolist() == [40, 20, 0]
    assert crop[-1, -1].tolist() == [119, 79, 0]


def test_an_own_space_wins():
    (block,) = begun("resized", space="original").zoom([0, 0, 50, 50])
    assert block["image"].size == (50, 50)


@pytest.mark.parametrize("box", [[99, 49, 100, 50], [0, 0, 0.5, 0.5], [50, 0, 51, 50], [-20, -20, 1, 1]])
def test_small_boxes_grow_inside_the_image(box: list[float]):
    width, height = begun().zoom(box)[0]["image"].size
    assert SMALLEST <= width <= SMALLEST + 2
    assert height >= SMALLEST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": [1, 2, 3]}, "four numbers"),
        ({"box": "1, 2, 3, 4"}, "four numbers"),
        ({"box": [1, 2, None, 4]}, "four numbers"),
        ({"box": [30, 10, 20, 40]}, "x1 < x2"),
        ({"box": [200, 10, 300, 40]}, "lie in the image"),
        ({"box": [0, 0, 9, 9], "image": 1}, "image must be from 0 to 0, got 1"),
        ({"box": [0, 0, 9, 9], "image": True}, "image must be"),
        ({"box": [float("nan"), 0, 9, 9]}, "lie in the image"),
    ],
)
def test_wrong_boxes_are_told_to_the_model(arguments: dict, message: str):
    with pytest.raises(ToolError, match=message):
        begun().zoom(**arguments)


def test_looks_are_limited_and_pay_only_with_the_right_answer():
    environment = begun(max_crops=2, tool_bonus=0.5)
    environment.zoom([0, 0, 50, 50])
    environment.zoom([0, 0, 50, 50])
    with pytest.raises(ToolError, match="no more than 2 looks"):
        environment.zoom([0, 0, 50, 50])
    environment.finish("<answer>seven</answer>")
    assert environment.get_reward() == 1.5
    assert environment.metrics() == {"success": 1.0, "crops": 2.0}
    environment.finish("<answer>eight</answer>")
    assert environment.get_reward() == 0.0
    environment.reset(record=Record(id="b", question="?", answer="seven"))
    environment.finish("<answer>seven</answer>")
    assert environment.get_reward() == 1.0  # right without a look
