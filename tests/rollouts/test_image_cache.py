"""Images are processed once, however many prompts contain them; the encoder says which images come."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor

from tests.support.training import picture
from vlm_grpo.rollouts.image_cache import CachedImageProcessor, Counters


@pytest.fixture
def cached(tiny_model: Path) -> CachedImageProcessor:
    return CachedImageProcessor(AutoProcessor.from_pretrained(tiny_model).image_processor, Counters())


def test_an_image_is_processed_once(cached: CachedImageProcessor):
    for images in ([picture(0)], [picture(0), picture(1)]):
        cached.expected_keys = [str(number) for number in range(len(images))]
        grids = cached(images)["image_grid_thw"]
    assert len(grids) == 2 and cached.counters.processed == 2


def test_an_unexpected_image_is_an_error(cached: CachedImageProcessor):
    cached.expected_keys = ["only one"]
    with pytest.raises(RuntimeError, match="1 images were expected, the processor passed 2"):
        cached([picture(0), picture(1)])
