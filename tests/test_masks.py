from __future__ import annotations

import json
import math
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from sklearn.datasets import load_sample_image

from vlm_grpo.masks import (
    CODECS,
    decode_mask,
    decode_regions,
    encode_mask,
    fit_iou,
    read_rle,
    region_iou,
    validate_shape,
    write_rle,
)
from vlm_grpo.masks.contours import area, extract_contours, resample, start_points
from vlm_grpo.masks.curves import Series
from vlm_grpo.masks.raster import fill_polygon, regions_to_mask, run_boundaries
from vlm_grpo.masks.simplify import simplify_polygon

ROWS, COLUMNS = np.mgrid[0:120, 0:160] + 0.5
KINDS = ("chebyshev", "fourier")


def ellipse(x: float, y: float, a: float, b: float, turn: float = 0.0) -> np.ndarray:
    """(120, 160); x, y, a and b in pixels, the turn in radians."""
    right, down = COLUMNS - x, ROWS - y
    along, across = right * math.cos(turn) + down * math.sin(turn), down * math.cos(turn) - right * math.sin(turn)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


def star(points: int, inner: float) -> np.ndarray:
    angles = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, inner, 50.0)
    outline = np.stack([80 + radius * np.cos(angles), 60 + radius * np.sin(angles)], axis=1)
    return regions_to_mask([fill_polygon(outline, 120, 160)], 120, 160)


@lru_cache
def photo_masks() -> list[np.ndarray]:
    """Bright regions of two photographs: ragged, with holes and many components."""
    masks = []
    for name, limit in (("flower.jpg", 120), ("china.jpg", 200)):
        grey = load_sample_image(name).mean(axis=2)[::3, ::3]
        masks.append(grey > limit)
    return masks


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@lru_cache
def odd_masks() -> dict[str, np.ndarray]:
    one, line = np.zeros((9, 7), bool), np.zeros((30, 40), bool)
    one[4, 2], line[7, 3:38] = True, True
    return {
        "ellipse": ellipse(70, 55, 50, 30, 0.4),
        "star": star(5, 20),
        "two parts": ellipse(40, 60, 25, 40) | ellipse(120, 60, 30, 20),
        "hole": ellipse(80, 60, 50, 40) & ~ellipse(80, 60, 30, 25),
        "one pixel": one,
        "line": line,
        "whole": np.ones((20, 30), bool),
        "corner": ellipse(0, 0, 60, 50),
        "flower": photo_masks()[0],
        "china": photo_masks()[1],
    }


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes filled: what cannot be reached from outside over edges of pixels."""
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(mask)


# regions and RLE


@pytest.mark.parametrize("name", odd_masks())
def test_toggles_are_cocos_runs(name: str):
    mask = odd_masks()[name]
    toggles = run_boundaries(mask)
    assert np.array_equal(regions_to_mask([toggles], *mask.shape), mask)
    truth = read_rle(write_rle(mask))
    assert np.array_equal(truth.boundaries, toggles)
    assert (truth.height, truth.width, truth.area) == (*mask.shape, mask.sum())


@given(
    st.integers(1, 12), st.integers(1, 12), st.lists(st.booleans(), min_size=144, max_size=144), st.integers(0, 2**32)
)
@settings(max_examples=60)
def test_rle_reads_what_pycocotools_writes(height: int, width: int, bits: list[bool], seed: int):
    mask = np.array(bits[: height * width]).reshape(height, width)
    big = np.random.default_rng(seed).random((70, 90)) < 0.02  # runs of more than one character
    for one in (mask, big):
        assert np.array_equal(regions_to_mask([read_rle(write_rle(one)).boundaries], *one.shape), one)
        runs = np.diff([0, *run_boundaries(one), one.size]).tolist()
        assert np.array_equal(
            read_rle({"size": list(one.shape), "counts": runs}).boundaries[: len(runs) - 1], runs_at(runs)
        )


def runs_at(runs: list[int]) -> np.ndarray:
    return np.cumsum(runs)[:-1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("abc", "must be {"),
        ({"size": [2, 2]}, "must be {"),
        ({"size": [2], "counts": "4"}, "'size' must be"),
        ({"size": [2, 0], "counts": "4"}, "'size' must be"),
        ({"size": [2, True], "counts": "4"}, "'size' must be"),
        ({"size": [2, 2**40], "counts": "4"}, "'size' must be"),
        ({"size": [2, 2], "counts": [1, 2]}, "4 pixels long together, got 3"),
        ({"size": [2, 2], "counts": [5, -1]}, "none negative"),
        ({"size": [2, 2], "counts": "5"}, "4 pixels long together, got 5"),
        ({"size": [2, 2], "counts": "é"}, "4 pixels long"),
        ({"size": [2, 2], "counts": "d"}, "that pycocotools has written"),  # says that more follow
        ({"size": [2, 2], "counts": "!"}, "that pycocotools has written"),
        ({"size": [2, 2], "counts": "dddddddd4"}, "a run that is too long"),
        ({"size": [2, 2], "counts": ""}, "that pycocotools has written"),
        ({"size": [2, 2], "counts": 4}, "must be text or a list"),
    ],
)
def test_a_broken_rle_is_refused(value: object, message: str):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_rle(value)


@given(st.text(max_size=20), st.binary(max_size=20))
def test_any_counts_are_a_mask_or_refused(text: str, content: bytes):
    for counts in (text, content, list(content)):
        try:
            truth = read_rle({"size": [9, 9], "counts": counts})
        except ValueError:
            continue
        assert truth.boundaries.max(initial=0) <= 81 and truth.area <= 81


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


# outlines


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


# series


@pytest.mark.parametrize("terms", [3, 8, 9])
def test_chebyshev_values_and_derivatives_are_numpys(terms: int):
    t = np.linspace(-1, 1, 41)
    series = Series("chebyshev", terms)
    values = series.values(t)
    assert np.allclose(values, np.polynomial.chebyshev.chebvander(t, terms - 1))
    for derivative, order in zip(series.derivatives(t, values), (1, 2), strict=True):
        for k in range(terms):
            exact = np.polynomial.chebyshev.Chebyshev.basis(k).deriv(order)(t)
            assert np.allclose(derivative[:, k], exact)


@pytest.mark.parametrize("terms", [3, 8, 9])
def test_fourier_values_and_derivatives(terms: int):
    t = np.linspace(-1, 1, 41)
    series = Series("fourier", terms)
    values = series.values(t)
    expected = [np.ones_like(t)]
    for k in range(1, 6):
        expected += [np.cos(np.pi * k * t), np.sin(np.pi * k * t)]
    assert np.allclose(values, np.stack(expected[:terms], axis=1))
    first, second = series.derivatives(t, values)
    assert np.allclose(np.gradient(values, t, axis=0)[2:-2], first[2:-2], atol=0.35 * terms)
    step = 1e-5
    assert np.allclose(first, (series.values(t + step) - series.values(t - step)) / (2 * step), atol=1e-5)
    moved = series.derivatives(t + step, series.values(t + step))[0] - first
    assert np.allclose(second, moved / step, atol=1e-2 * terms**3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [3, 8, 13])
def test_a_fitted_curve_is_closed(kind: str, terms: int):
    series = Series(kind, terms)
    rows = series.fit(extract_contours(star(5, 20))[0])
    first, last = series.values(np.array([-1.0, 1.0])) @ rows
    assert np.allclose(first, last, atol=1e-9)
    if kind == "chebyshev":
        assert np.abs(rows[1::2].sum(axis=0)).max() < 1e-9  # a1 + a3 + ... = 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_of_the_series_is_fitted_by_itself(kind: str):
    """A pixel beside an ellipse of 110 by 60, which is no such curve; a quarter when its own curve is fitted again."""
    series = Series(kind, 8)
    points = extract_contours(ellipse(75, 60, 55, 30, 0.4))[0]
    for largest in (1.0, 0.3):
        curve = series.values(np.linspace(-1, 1, 4000)) @ series.fit(points)
        gap = np.hypot(*(points[:, None] - curve[None]).transpose(2, 0, 1)).min(axis=1)
        assert gap.max() < largest
        points = resample(curve[:-1])


@pytest.mark.parametrize(("kind", "gain"), [("chebyshev", 0.9), ("fourier", 0.9)])
def test_parameter_correction_lowers_the_residual(kind: str, gain: float):
    series = Series(kind, 8)
    points = extract_contours(star(4, 25))[0]
    closed = np.concatenate([points, points[:1]])
    t = np.linspace(-1, 1, 257)
    plain = series._solve(series.values(t), closed)

    def off(rows: np.ndarray) -> float:
        """Mean squared distance of the outline from the curve."""
        curve = series.values(np.linspace(-1, 1, 2000)) @ rows
        return float(((points[:, None] - curve[None]) ** 2).sum(axis=2).min(axis=1).mean())

    assert off(series.fit(points)) < gain * off(plain)


def test_corners_of_a_square_are_found():
    square = resample(np.array([[0.0, 0.0], [64.0, 0.0], [64.0, 64.0], [0.0, 64.0]]))
    assert sorted(simplify_polygon(square, 4).tolist()) == [[0, 0], [0, 64], [64, 0], [64, 64]]
    assert len(simplify_polygon(square, 12)) == 4  # more do not help
    assert len(simplify_polygon(extract_contours(star(7, 20))[0], 12)) == 12


# codecs


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


PART = {"bbox_2d": [1, 2, 30, 40], "x": [0, 1, 2, 3, 4, 5, 6, 7], "y": [1] * 8}
POLYGON = {"bbox_2d": [1, 2, 30, 40], "points": [[0, 0], [9, 0], [0, 9]]}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"chebyshev": [PART]}, None),
        ({"fourier": [PART] * 4}, None),
        ({"polygon": [POLYGON]}, None),
        (json.dumps({"chebyshev": [PART]}), None),
        ({"chebyshev": [{**PART, "x": [0.5] * 8}]}, None),
        ({"chebyshev": [PART], "fourier": [PART]}, "one key"),
        ({"cheb": [PART]}, "one key, chebyshev or fourier or polygon"),
        ({7: [PART]}, "one key"),
        ({}, "one key"),
        ([PART], "one key"),
        ("no JSON", "one key"),
        (None, "one key"),
        ({"chebyshev": []}, "1 to 4 shapes"),
        ({"chebyshev": [PART] * 5}, "1 to 4 shapes"),
        ({"chebyshev": PART}, "1 to 4 shapes"),
        ({"chebyshev": [[1, 2]]}, "exactly bbox_2d, x, y"),
        ({"chebyshev": [{**PART, "z": 1}]}, "exactly bbox_2d, x, y"),
        ({"polygon": [PART]}, "exactly bbox_2d, points"),
        ({"chebyshev": [{**PART, "bbox_2d": [1, 2, 3]}]}, "bbox_2d as"),
        ({"chebyshev": [{**PART, "bbox_2d": [30, 2, 1, 40]}]}, "x1 < x2"),
        ({"chebyshev": [{**PART, "bbox_2d": [1, 2, 30, 10**400]}]}, "bbox_2d as"),
        ({"chebyshev": [{**PART, "bbox_2d": [1, 2, 30, float("inf")]}]}, "bbox_2d as"),
        ({"chebyshev": [{**PART, "x": [0] * 7}]}, "8 numbers in x and in y"),
        ({"chebyshev": [{**PART, "x": [0] * 9, "y": [0] * 9}]}, "8 numbers in x and in y"),
        ({"chebyshev": [{**PART, "x": [float("nan")] * 8}]}, "lists of numbers from -1000 to 1000"),
        ({"chebyshev": [{**PART, "x": ["1"] * 8}]}, "lists of numbers"),
        ({"chebyshev": [{**PART, "x": [True] * 8}]}, "lists of numbers"),
        ({"chebyshev": [{**PART, "x": [10**400] * 8}]}, "lists of numbers"),
        ({"chebyshev": [{**PART, "x": "12345678"}]}, "lists of numbers"),
        ({"polygon": [{**POLYGON, "points": [[0, 0], [1, 1]]}]}, "3 to 8 points"),
        ({"polygon": [{**POLYGON, "points": [[0, 0]] * 9}]}, "3 to 8 points"),
        ({"polygon": [{**POLYGON, "points": [[0, 0, 0]] * 3}]}, "points as"),
        ({"polygon": [{**POLYGON, "points": [0, 1, 2]}]}, "points as"),
    ],
)
def test_what_is_no_shape(value: object, fault: str | None):
    found = validate_shape(value, 8)
    assert (found is None) if fault is None else (fault in found)
    mask = decode_mask(value, 20, 30, terms=8)
    assert (mask is None) == (fault is not None)
    assert mask is None or (mask.shape == (20, 30) and mask.dtype == bool)


def test_without_a_number_of_terms_any_from_3_to_64_is_taken():
    for terms in (3, 64):
        assert decode_mask({"chebyshev": [{**PART, "x": [1] * terms, "y": [1] * terms}]}, 9, 9) is not None
    for terms in (2, 65):
        assert (
            validate_shape({"fourier": [{**PART, "x": [1] * terms, "y": [1] * terms}]})
            == "3 to 64 numbers in x and in y"
        )


NUMBERS = st.one_of(st.integers(-2000, 2000), st.integers(-(10**40), 10**40), st.floats(), st.text(max_size=2))
AXIS = st.lists(NUMBERS, min_size=7, max_size=9)
PARTS = st.fixed_dictionaries({"bbox_2d": st.lists(NUMBERS, min_size=3, max_size=5)}, optional={"x": AXIS, "y": AXIS})
GOOD = st.lists(st.integers(-1000, 1000), min_size=8, max_size=8)
GOOD_PARTS = st.fixed_dictionaries(
    {"bbox_2d": st.tuples(*[st.integers(0, 500)] * 2, *[st.integers(501, 1500)] * 2).map(list), "x": GOOD, "y": GOOD}
)


@given(
    codec=st.sampled_from(["chebyshev", "fourier", "polygon", "x"]),
    parts=st.lists(st.one_of(PARTS, GOOD_PARTS), max_size=3),
)
@settings(max_examples=100)
def test_any_value_decodes_to_a_mask_or_to_none(codec: str, parts: list):
    value = {codec: parts}
    mask = decode_mask(value, 12, 17)
    assert (mask is None) == (validate_shape(value) is not None)
    assert 0.0 <= fit_iou(np.eye(12, 17, dtype=bool), value) <= 1.0
    if mask is not None:
        assert fit_iou(mask, value) == float(mask.any())


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
