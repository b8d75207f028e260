"""COCO's run-length encoding: what pycocotools writes is read, what is broken raises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.masks.sample_masks import odd_masks
from vlm_grpo.masks import (
    read_rle,
    write_rle,
)
from vlm_grpo.masks.raster import regions_to_mask, run_boundaries


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
        ({"size": [2, 2], "counts": [1, 2]}, "must sum to 4 pixels, got 3"),
        ({"size": [2, 2], "counts": [5, -1]}, "must be non-negative integers"),
        ({"size": [2, 2], "counts": "5"}, "must sum to 4 pixels, got 5"),
        ({"size": [2, 2], "counts": "é"}, "must sum to 4 pixels"),
        ({"size": [2, 2], "counts": "d"}, "in the encoding of pycocotools"),  # says that more follow
        ({"size": [2, 2], "counts": "!"}, "in the encoding of pycocotools"),
        ({"size": [2, 2], "counts": "dddddddd4"}, "a run that is too long"),
        ({"size": [2, 2], "counts": ""}, "in the encoding of pycocotools"),
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
