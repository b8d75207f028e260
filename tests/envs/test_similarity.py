"""Measures of likeness against numbers worked out by hand and a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_grpo.boxes import Box
from vlm_grpo.envs.browser.renderer import Line, Render
from vlm_grpo.envs.similarity import (
    C1,
    Similarity,
    Word,
    color_similarity,
    layout_similarity,
    page_similarity,
    ssim,
    structure_similarity,
    text_similarity,
    visible_boxes,
    visible_words,
    weighted_mean,
)

NOISE = np.random.default_rng(0).uniform(0, 255, (40, 50, 3))


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(pixels).astype(np.uint8))


def paper(height: int = 100, width: int = 200) -> np.ndarray:
    """White with a black stripe at the left and a red block: (H, W, 3)."""
    pixels = np.full((height, width, 3), 255.0)
    pixels[:, :20] = 0
    pixels[40:80, 60:140] = (220, 30, 30)
    return pixels


def ssim_by_loops(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window, with their 11 x 11 Gaussian of spread 1.5."""
    weights = np.array([[math.exp(-(x * x + y * y) / (2 * 1.5**2)) for x in range(-5, 6)] for y in range(-5, 6)])
    weights /= weights.sum()
    values = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            a, b = (part[top : top + 11, left : left + 11] for part in (one, other))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            shared = (weights * (a - ma) * (b - mb)).sum()
            value = (2 * ma * mb + 6.5025) * (2 * shared + 58.5225)
            values.append(value / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225)))
    return float(np.mean(values))


def test_ssim_agrees_with_the_equation_written_as_loops():
    one = NOISE[:17, :23, 0]
    other = 0.6 * one + 0.4 * NOISE[20:37, :23, 1]
    assert ssim(one, other) == pytest.approx(ssim_by_loops(one, other), abs=1e-9)
    assert 0.3 < ssim(one, other) < 0.9


def test_ssim_of_flat_pictures_is_their_luminance_term():
    """Means 100 and 50, no spread: (2 * 5000 + C1) / (12500 + C1), C1 = 6.5025."""
    found = ssim(np.full((20, 20), 100.0), np.full((20, 20), 50.0))
    assert found == pytest.approx(10006.5025 / 12506.5025)


def test_ssim_of_a_picture_and_its_negative_is_below_zero():
    assert ssim(NOISE[..., 0], 255 - NOISE[..., 0]) < -0.5
    assert structure_similarity(NOISE[..., 0], 255 - NOISE[..., 0]) == 0


@pytest.mark.parametrize("gray", [0, 90, 128, 255])
def test_one_colored_pages_gain_nothing(gray: int):
    design = paper()
    page = np.full_like(design, gray)
    assert structure_similarity(design.mean(axis=2), page.mean(axis=2)) < 0.01
    assert color_similarity(design, page) == 0
    assert structure_similarity(design.mean(axis=2), design.mean(axis=2)) == 1
    assert color_similarity(design, design) == 1


def test_structure_falls_as_the_page_departs_from_the_design():
    design = paper().mean(axis=2)
    pages = [design + (255 - design) * share for share in (0.1, 0.5, 0.9)]  # fading to white
    values = [structure_similarity(design, page) for page in pages]
    assert 1 > values[0] > values[1] > values[2] > 0


def test_structure_is_the_mean_of_a_fine_and_a_coarse_look():
    """256 pixels high: as it is, and averaged by 4, where stripes of one pixel are even gray and all is well."""
    design = np.full((256, 300), 255.0)
    design[100:180] = 127.5
    page = design.copy()
    page[100:180:2], page[101:180:2] = 0, 255
    blank = np.full_like(design, 255)
    assert ssim(design, page) < ssim(design, blank)
    assert structure_similarity(design, page) == pytest.approx(0.5, abs=1e-6)


def test_color_is_a_share_of_what_one_color_leaves():
    """16 blocks of 1 pixel: 12 white, 4 black, so the median is white and a white page differs by 4/16 of 255.

    A page whose 4 blocks are of gray 51 differs by 4/16 of 51: 1 - 51/255 = 0.8 of the way.
    """
    design = np.full((1, 16, 3), 255.0)
    design[0, :4] = 0
    page = design.copy()
    page[0, :4] = 51
    assert color_similarity(design, page) == pytest.approx(0.8)
    page[0, :4] = 255
    assert color_similarity(design, page) == 0
    assert color_similarity(design, 255 - design) == 0  # worse than empty


def test_color_blocks_at_the_edge_are_means_of_what_they_hold():
    """20 pixels in blocks of round(20 / 16) = 1; 40 in blocks of 2 (2.5 is even): 2 x 41 has a last block of 1."""
    design = np.zeros((2, 41, 3))
    design[:, 40] = 255
    page = design.copy()
    assert color_similarity(design, page) == 1
    page[:, 40] = 0
    assert color_similarity(design, page) == 0


def test_an_empty_design_is_matched_by_an_empty_page_only():
    white = Render.of_image(picture(np.full((60, 80, 3), 255)))
    gray = Render.of_image(picture(np.full((60, 80, 3), 155)))
    assert page_similarity(white, white) == Similarity(1, 1, None, None)
    found = page_similarity(white, gray)
    assert found.color == pytest.approx(1 - 100 / 255)
    assert found.ssim == pytest.approx((2 * 255 * 155 + C1) / (255**2 + 155**2 + C1))


WORDS = [Word("red", 10, 10, 50.0), Word("apple", 40, 10, 50.0)]
SHAPE = (60, 80)  # the diagonal is 100, and 25 is far


def test_words_in_their_place_count_whole_and_far_ones_half():
    assert text_similarity(WORDS, WORDS, SHAPE) == 1
    moved = [WORDS[0], WORDS[1]._replace(y=10 + 12.5)]  # halfway to far: 0.75 of 5 letters
    assert text_similarity(WORDS, moved, SHAPE) == pytest.approx(2 * (3 + 0.75 * 5) / 16)
    far = [word._replace(x=word.x + 39, y=word.y + 40) for word in WORDS]
    assert text_similarity(WORDS, far, SHAPE) == pytest.approx(0.5)
    assert text_similarity(WORDS, [WORDS[0]], SHAPE) == pytest.approx(2 * 3 / 11)
    assert text_similarity(WORDS, [], SHAPE) == 0 == text_similarity([], WORDS, SHAPE)
    assert text_similarity([], [], SHAPE) is None


def test_words_are_matched_once_and_to_the_nearest():
    assert text_similarity(WORDS, WORDS * 4, SHAPE) == pytest.approx(2 * 8 / 40)
    two = [Word("a", 0, 0, 9.0), Word("a", 50, 0, 9.0)]
    assert text_similarity(two, two[::-1], SHAPE) == 1
    assert text_similarity(two, [Word("b", 0, 0, 9.0)] * 2, SHAPE) == 0


def test_faint_words_count_less():
    faint = [word._replace(contrast=10.0) for word in WORDS]
    assert text_similarity(WORDS, faint, SHAPE) == pytest.approx(0.2)
    assert text_similarity(faint, WORDS, SHAPE) == 1


def test_words_are_where_their_letters_are_and_only_if_seen():
    gray = np.full((100, 200), 255.0)
    gray[10:20, ::2] = 0  # ink, everywhere in this line
    line = Line("one two", Box(0, 10, 70, 20))
    one, two = visible_words([line], gray)
    assert (one.text, one.x, one.y) == ("one", 15, 15) and (two.text, two.x) == ("two", 55)
    assert one.contrast > 100
    hidden = [Line("hidden", Box(0, 50, 60, 60)), Line("outside", Box(300, 10, 370, 20))]
    above = [Line("above", Box(0, -20, 50, -10)), Line("left", Box(-90, 10, -5, 20))]
    assert visible_words([*hidden, *above], gray) == []
    assert [word.text for word in visible_words([Line("日本 go", Box(0, 10, 50, 20))], gray)] == ["日", "本", "go"]
    assert len(visible_words([line] * 9000, gray)) == 400  # the same word 200 times at most


def test_layout_counts_the_overlap_of_matched_boxes():
    """IoU of the second pair: 10 x 5 of 10 x 10."""
    wanted = [Box(0, 0, 20, 20), Box(50, 50, 60, 60)]
    found = [Box(50, 50, 60, 55), Box(0, 0, 20, 20)]
    assert layout_similarity(wanted, wanted) == 1
    assert layout_similarity(wanted, found) == pytest.approx((1 + 0.5) / 2)
    assert layout_similarity(wanted, found * 3) == pytest.approx(2 * 1.5 / 8)
    assert layout_similarity(wanted, [Box(0, 0, 20, 20)]) == pytest.approx(2 / 3)
    assert layout_similarity(wanted, []) == 0 == layout_similarity([], wanted)
    assert layout_similarity([], []) is None


def test_boxes_are_seen_inside_the_picture_and_where_something_is():
    gray = np.full((100, 200), 255.0)
    gray[20:40, 30:60] = 0
    block, blank = Box(30, 20, 60, 40), Box(100, 50, 150, 90)
    assert visible_boxes([block, blank, block], gray) == [block]  # an even block is seen by its edge
    assert visible_boxes([Box(-50, 20, 60, 500)], gray) == [Box(0, 20, 60, 100)]
    assert visible_boxes([Box(0, 0, 200, 100), Box(250, 0, 300, 50), Box(40, 30, 40, 35)], gray) == []
    assert visible_boxes([Box(30, 20, 31 + n / 10, 40) for n in range(900)], gray)[0].x2 == 31 + 89.9
    assert len(visible_boxes([Box(30, 20, 31 + n / 10, 40) for n in range(900)], gray)) == 200


def test_equal_pages_have_exactly_one_in_everything():
    render = Render.of_image(picture(paper()))
    page = Render(render.png, (Line("a b", Box(10, 10, 60, 90)),), (Box(60, 40, 140, 80),))
    assert page_similarity(page, page) == Similarity(1, 1, 1, 1)
    assert page_similarity(render, page) == Similarity(1, 1, None, None)  # a mere picture says nothing of text
    empty = Render(Render.of_image(picture(np.full((100, 200, 3), 255))).png, (), ())
    assert page_similarity(page, empty) == Similarity(pytest.approx(0, abs=0.01), 0, 0, 0)


def test_pictures_of_other_sizes_are_not_compared():
    one, other = (Render.of_image(Image.new("RGB", size)) for size in ((30, 20), (20, 30)))
    with pytest.raises(ValueError, match="got 30 x 20 and 20 x 30"):
        page_similarity(one, other)


def test_total_is_the_weighted_mean_of_what_applies():
    likeness = Similarity(1, 0.5, 0, None)
    assert weighted_mean(likeness) == pytest.approx(0.5)
    assert weighted_mean(likeness, {"ssim": 1, "color": 3}) == pytest.approx(2.5 / 4)
    assert weighted_mean(likeness, {"ssim": 1, "layout": 9}) == 1
    assert weighted_mean(likeness, {"layout": 1}) == 0


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0, 300))
def test_measures_stay_between_zero_and_one(height: int, width: int, seed: int, spread: float):
    random = np.random.default_rng(seed)
    design, page = (np.clip(random.normal(128, spread, (height, width, 3)), 0, 255) for _ in range(2))
    renders = [Render.of_image(picture(pixels)) for pixels in (design, page)]
    found = page_similarity(*renders)
    assert 0 <= found.ssim <= 1 and 0 <= found.color <= 1
    assert page_similarity(renders[0], renders[0]) == Similarity(pytest.approx(1), 1, None, None)
