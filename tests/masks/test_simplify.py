"""The vertices that preserve a contour best."""

from __future__ import annotations

import numpy as np

from tests.masks.sample_masks import star
from vlm_grpo.masks.contours import extract_contours, resample
from vlm_grpo.masks.simplify import simplify_polygon


def test_corners_of_a_square_are_found():
    square = resample(np.array([[0.0, 0.0], [64.0, 0.0], [64.0, 64.0], [0.0, 64.0]]))
    assert sorted(simplify_polygon(square, 4).tolist()) == [[0, 0], [0, 64], [64, 0], [64, 64]]
    assert len(simplify_polygon(square, 12)) == 4  # more do not help
    assert len(simplify_polygon(extract_contours(star(7, 20))[0], 12)) == 12
