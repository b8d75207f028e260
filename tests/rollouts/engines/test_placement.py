"""Where an engine's images are in the trainer's tokens."""

from __future__ import annotations

import pytest

from vlm_grpo.rollouts.engines.placement import Expansion, place_images

IMAGE, ROW, OPEN, CLOSE = 9, 8, 6, 7


def image(count: int) -> Expansion:
    return Expansion([IMAGE] * count, frozenset([IMAGE]))


def test_images_are_found_in_order():
    ids = [1, OPEN, 9, 9, CLOSE, 2, OPEN, 9, 9, 9, CLOSE, 3]
    assert place_images(ids, [image(2), image(3)]) == [2, 7]


def test_an_expansion_may_have_other_tokens_within():
    tiles = Expansion([9, 9, ROW, 9, 9], frozenset([IMAGE]))
    assert place_images([1, 9, 9, ROW, 9, 9, 2, 9, 9, ROW, 9, 9], [tiles, tiles]) == [1, 7]


def test_images_may_follow_each_other_without_a_token_between():
    assert place_images([1, 9, 9, 9, 9, 9], [image(2), image(3)]) == [1, 3]


@pytest.mark.parametrize(
    ("ids", "expansions"),
    [
        ([1, 9, 9, 9, 2], [image(2)]),  # the engine has fewer tokens
        ([1, 9, 9, 2], [image(3)]),  # or more
        ([1, 9, 9, 2, 9, 9], [image(2)]),  # or not all of the images
        ([1, 9, 9, 2], [image(2), image(2)]),
        ([1, 9, 2, 9, 9], [image(2), image(1)]),  # or in another order
    ],
)
def test_another_expansion_is_an_error_that_names_the_image(ids: list[int], expansions: list[Expansion]):
    with pytest.raises(ValueError, match=r"data.jsonl:3: the engine expands image \d .* same processor"):
        place_images(ids, expansions, "data.jsonl:3")
