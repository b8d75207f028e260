"""Contours of masks of every kind give the mask back."""

from __future__ import annotations

import numpy as np
import pytest

from tests.masks.sample_masks import ellipse, filled, iou, odd_masks
from vlm_grpo.masks.contours import area, extract_contours, resample, start_points
from vlm_grpo.masks.raster import fill_polygon, regions_to_mask


@pytest.mark.parametrize("name", odd_masks())
def test_outlines_give_the_mask_back(name: str):
    mask = odd_masks()[name]
    found = extract_contours(mask)
    assert len(found) == {"two parts": 2, "flower": len(found), "china": len(found)}.get(name, 1)
    assert all(part.shape == (256, 2) and area(part) > 0 for part in found)  # clockwise on the screen
    sizes = [area(part) for part in found]
    assert sizes == sorted(sizes, reverse=True) and len(found) <= 4 and sizes[-1] >= 0.02 * sum(sizes)
    back = regions_to_mask([fill_polygon(part, *mask.shape) for part in found], *mask.shape)
    if name not in ("flower", "china"):  # those have more parts than are kept
        assert iou(back, filled(mask)) > 0.97


def test_outlines_have_no_part_that_is_very_small():
    mask = ellipse(60, 60, 40, 40)
    mask[5, 150] = True
    assert len(extract_contours(mask)) == 1
    assert extract_contours(np.zeros((5, 5), bool)) == []


def test_resample_is_even_along_the_outline():
    """A 3 by 1 rectangle has a perimeter of 8: eight points, one at each unit."""
    points = resample(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [0.0, 1.0]]), 8)
    assert points.tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [2, 1], [1, 1], [0, 1]]


def test_the_first_start_is_the_sharpest_turn():
    drop = resample(np.array([[0.0, 0.0], [10.0, 4.0], [12.0, 8.0], [10.0, 12.0], [0.0, 16.0], [-30.0, 8.0]]))
    starts = start_points(drop, 4)
    assert np.allclose(drop[starts[0]], [-30, 8], atol=0.5)
    assert [(start - starts[0]) % 256 for start in starts] == [0, 64, 128, 192]
