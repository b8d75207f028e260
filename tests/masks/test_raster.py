"""Polygons become regions by the centers of pixels; IoU of regions is that of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from tests.masks.sample_masks import odd_masks
from vlm_grpo.masks import (
    region_iou,
)
from vlm_grpo.masks.raster import fill_polygon, regions_to_mask, run_boundaries


def test_fill_takes_pixels_whose_centre_is_inside():
    """A triangle with corners (0, 0), (4, 0), (0, 4) in pixels: centres with x + y < 4."""
    points = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    rows, columns = np.mgrid[0:5, 0:6] + 0.5
    assert np.array_equal(regions_to_mask([fill_polygon(points, 5, 6)], 5, 6), rows + columns < 4)


def test_fill_is_even_odd_and_clipped():
    """A square that runs round twice is empty; one larger than the image covers it."""
    square = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 4.0], [1.0, 4.0]])
    assert regions_to_mask([fill_polygon(square, 6, 6)], 6, 6).sum() == 9
    assert not regions_to_mask([fill_polygon(np.concatenate([square, square]), 6, 6)], 6, 6).any()
    assert regions_to_mask([fill_polygon(square * 1000 - 2000, 6, 6)], 6, 6).all()
    assert not regions_to_mask([fill_polygon(square + 100, 6, 6)], 6, 6).any()


@given(st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 60)), min_size=3, max_size=12))
@settings(max_examples=100)
def test_fill_counts_crossings(vertices: list[tuple[float, float]]):
    """Inside is where a ray upwards crosses an odd number of sides, counted one by one."""
    points = np.array(vertices)
    mask = regions_to_mask([fill_polygon(points, 40, 40)], 40, 40)
    for row, column in ((3, 5), (20, 20), (39, 0), (11, 30)):
        x, y = column + 0.5, row + 0.5
        sides = zip(vertices, [*vertices[1:], vertices[0]], strict=True)
        gaps = [y - y1 - (x - x1) * (y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in sides if (x1 >= x) != (x2 >= x)]
        if all(abs(gap) > 1e-6 for gap in gaps):  # a centre on a side may fall either way
            assert mask[row, column] == (sum(gap > 0 for gap in gaps) % 2 == 1)


@pytest.mark.parametrize("first", odd_masks())
def test_region_iou_is_that_of_pycocotools(first: str):
    mask = odd_masks()[first]
    pieces = [mask & (np.indices(mask.shape).sum(axis=0) % 3 < 2), np.roll(mask, 2, axis=1), np.zeros_like(mask)]
    union = np.asfortranarray(pieces[0] | pieces[1], dtype=np.uint8)
    expected = coco.iou([coco.encode(union)], [coco.encode(np.asfortranarray(mask, dtype=np.uint8))], [0])[0, 0]
    assert region_iou([run_boundaries(piece) for piece in pieces], run_boundaries(mask)) == pytest.approx(
        expected, abs=1e-12
    )
    assert region_iou([], run_boundaries(mask)) == 0.0
