"""What is a well-formed shape, what is not, and what is said about it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_grpo.masks import (
    decode_mask,
    fit_iou,
    validate_shape,
)

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
