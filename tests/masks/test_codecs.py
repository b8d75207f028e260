"""Masks survive encoding and decoding by every codec, as well as its number of terms allows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.masks.sample_masks import KINDS, ellipse, iou, odd_masks, star
from vlm_grpo.masks import (
    CODECS,
    decode_mask,
    decode_regions,
    encode_mask,
    fit_iou,
    region_iou,
    validate_shape,
)
from vlm_grpo.masks.contours import extract_contours, start_points
from vlm_grpo.masks.raster import fill_polygon, regions_to_mask, run_boundaries


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("turn", [0.0, 0.5, 1.2])
@pytest.mark.parametrize("starts", [1, 8])
def test_ellipses_come_back(codec: str, turn: float, starts: int):
    mask = ellipse(75, 60, 55, 30, turn)
    value = encode_mask(mask, codec, starts=starts)
    assert fit_iou(mask, value) > (0.9 if codec == "polygon" else 0.97)
    assert iou(decode_mask(value, 120, 160), mask) == pytest.approx(fit_iou(mask, value))


def convex_blob(seed: int) -> np.ndarray:
    """A smooth convex outline by its support function h, whose radius of curvature h + h'' stays positive."""
    source = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    height, slope = np.ones_like(angle), np.zeros_like(angle)
    for k, size in ((2, 0.2), (3, 0.06), (4, 0.03)):
        phase = source.uniform(0, 2 * np.pi)
        height, slope = height + size * np.cos(k * angle + phase), slope - size * k * np.sin(k * angle + phase)
    x = height * np.cos(angle) - slope * np.sin(angle)
    y = height * np.sin(angle) + slope * np.cos(angle)
    return regions_to_mask([fill_polygon(np.stack([80 + 42 * x, 60 + 42 * y], axis=1), 120, 160)], 120, 160)


@pytest.mark.parametrize("codec", KINDS)
def test_convex_blobs_come_back(codec: str):
    scores = [fit_iou(blob, encode_mask(blob, codec)) for blob in map(convex_blob, range(20))]
    assert np.mean(scores) > 0.97, scores


LEAST = {"star": 0.68, "two parts": 0.9, "one pixel": 1.0, "whole": 0.9, "corner": 0.9, "line": 0.4, "hole": 0.5}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", odd_masks())
def test_every_mask_has_a_well_formed_shape(codec: str, name: str):
    mask = odd_masks()[name]
    value = json.loads(json.dumps(encode_mask(mask, codec)))  # plain numbers only
    assert validate_shape(value, 8) is None
    assert fit_iou(mask, value) >= LEAST.get(name, 0.3)
    assert fit_iou(mask, json.dumps(value)) == fit_iou(mask, value)
    assert len(value[codec]) == len(extract_contours(mask))
    for part in value[codec]:
        assert all(type(number) is int and 0 <= number <= 1000 for number in part["bbox_2d"])


def test_the_box_is_that_of_the_part():
    """Pixels 40 to 79 of 160 and 30 to 59 of 120, in thousandths; centres of border pixels lie half a pixel inside."""
    mask = np.zeros((120, 160), bool)
    mask[30:60, 40:80] = True
    (part,) = encode_mask(mask)["chebyshev"]
    assert part["bbox_2d"] == [250, 250, 500, 500]
    (part,) = encode_mask(mask, extent=(160, 120))["chebyshev"]
    assert part["bbox_2d"] == [40, 30, 80, 60]


@pytest.mark.parametrize("codec", CODECS)
def test_a_part_that_is_thinner_than_a_thousandth_keeps_a_box(codec: str):
    """A pixel of 3000 is a third of a unit wide; the numbers say where in the box it is."""
    mask = np.zeros((40, 3000), bool)
    mask[7, 1500] = True
    value = encode_mask(mask, codec)
    assert validate_shape(value, 8) is None and fit_iou(mask, value) == 1.0


def test_more_terms_and_more_starts_fit_better():
    mask = star(5, 20)
    for codec in CODECS:
        scores = [fit_iou(mask, encode_mask(mask, codec, terms)) for terms in (4, 8, 16)]
        assert scores == sorted(scores) and scores[2] > scores[0] + 0.05
    scores = [fit_iou(mask, encode_mask(mask, "chebyshev", 8, starts)) for starts in (1, 16)]
    assert scores[1] > scores[0]


def test_a_list_of_parts_beats_one():
    mask = odd_masks()["two parts"]
    value = encode_mask(mask)
    assert fit_iou(mask, value) > 0.95
    assert fit_iou(mask, {"chebyshev": value["chebyshev"][:1]}) < 0.7


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("extent", [(1000, 1000), (160, 120), (640, 480)])
def test_extent_is_the_space_of_the_box_on_both_ways(codec: str, extent: tuple[int, int]):
    mask = ellipse(70, 55, 50, 30, 0.4)
    value = encode_mask(mask, codec, extent=extent)
    assert max(value[codec][0]["bbox_2d"]) <= max(extent)
    assert fit_iou(mask, value, extent) > 0.9
    if extent != (1000, 1000):
        assert fit_iou(mask, value) < 0.5


@pytest.mark.parametrize("codec", CODECS)
def test_rounding_costs_almost_nothing(codec: str):
    for mask in (ellipse(70, 55, 50, 30, 0.4), star(5, 30)):
        (points,) = extract_contours(mask)
        start = start_points(points, 1)[0]
        exact = CODECS[codec].curve(CODECS[codec].fit(np.roll(points, -start, axis=0), 8))
        unrounded = region_iou([fill_polygon(exact, *mask.shape)], run_boundaries(mask))
        assert abs(fit_iou(mask, encode_mask(mask, codec)) - unrounded) < 0.01


def test_a_shape_is_the_same_region_wherever_it_begins():
    """Backwards: a_k -> (-1)^k a_k. A Fourier series half a turn on: the odd harmonics change sign."""
    mask = star(5, 20)
    for codec, signs in (("chebyshev", [1, -1] * 4), ("fourier", [1, -1, -1, 1, 1, -1, -1, 1])):
        (part,) = encode_mask(mask, codec)[codec]
        turned = {**part, **{axis: [s * n for s, n in zip(signs, part[axis], strict=True)] for axis in "xy"}}
        same = [decode_mask({codec: [one]}, 120, 160) for one in (part, turned)]
        assert iou(*same) > 0.985  # 200 points lie elsewhere on the same curve
    (part,) = encode_mask(mask, "polygon")["polygon"]
    turned = {**part, "points": part["points"][3:] + part["points"][:3]}
    assert np.array_equal(decode_mask({"polygon": [part]}, 120, 160), decode_mask({"polygon": [turned]}, 120, 160))


def test_numbers_are_relative_to_the_box():
    """T_0 alone moves; a diamond of hundredths of the half-size is placed by its box."""
    square = {"bbox_2d": [250, 500, 750, 1000], "points": [[-100, -100], [100, -100], [100, 100], [-100, 100]]}
    mask = decode_mask({"polygon": [square]}, 8, 16)
    expected = np.zeros((8, 16), bool)
    expected[4:8, 4:12] = True
    assert np.array_equal(mask, expected)


def test_overlapping_parts_count_once():
    value = encode_mask(ellipse(80, 60, 40, 30))
    double = {"chebyshev": value["chebyshev"] * 2}
    assert np.array_equal(decode_mask(value, 120, 160), decode_mask(double, 120, 160))
    assert len(decode_regions(double, 120, 160)) == 2


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.zeros((5, 5)), {}, "at least one pixel"),
        (np.ones((5, 5, 1)), {}, r"\(height, width\)"),
        (np.ones((5, 5)), {"terms": 2}, "terms must be from 3 to 64, got 2"),
        (np.ones((5, 5)), {"starts": 0}, "starts must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_encoded_is_refused(mask: np.ndarray, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        encode_mask(mask, **options)


def test_an_unknown_codec_names_the_nearest():
    with pytest.raises(KeyError, match="unknown codec 'chebishev'; did you mean 'chebyshev'"):
        encode_mask(np.ones((5, 5)), "chebishev")
