from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_grpo.masks import CODECS, decode_mask, encode_mask, write_rle
from vlm_grpo.records import Record
from vlm_grpo.rewards import make_reward, score
from vlm_grpo.tasks import TASKS, ideal_completion

HEIGHT, WIDTH = 90, 120
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
MASK = ((COLUMNS - 60) / 40) ** 2 + ((ROWS - 40) / 25) ** 2 <= 1
STAR = MASK & ~((np.abs(COLUMNS - 60) < 8) & (ROWS > 40))  # a notch that eight terms cannot follow
THOUSAND = {"box_space": "thousand"}


def completion(value: object) -> str:
    return f"<think>There.</think>\n<answer>{value if isinstance(value, str) else json.dumps(value)}</answer>"


def mask_score(value: object, mask: np.ndarray = MASK, **columns: object) -> float | None:
    return score("mask_iou", completion(value), mask=write_rle(mask), **{**THOUSAND, **columns})


def test_a_box_of_half_the_truth():
    """The left half of a 40 x 40 square is half of the union; the whole image has 1600 of 10800 pixels right."""
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[20:60, 30:70] = True
    corners = [[-100, -100], [100, -100], [100, 100], [-100, 100]]
    for box, expected in (([30, 20, 70, 60], 1.0), ([30, 20, 50, 60], 0.5), ([0, 0, 120, 90], 1600 / 10800)):
        value = {"polygon": [{"bbox_2d": box, "points": corners}]}
        assert mask_score(value, square, box_space="original") == pytest.approx(expected)
        assert mask_score(value, square, box_space=None) == pytest.approx(expected)  # null: original pixels


@pytest.mark.parametrize("codec", CODECS)
def test_the_truth_is_the_mask_and_not_its_shape(codec: str):
    """The gold shape earns what it covers of the mask, however well the answer repeats it."""
    gold = encode_mask(STAR, codec)
    covered = decode_mask(gold, HEIGHT, WIDTH)
    expected = (covered & STAR).sum() / (covered | STAR).sum()
    assert expected < 0.99
    for answer in (gold, json.dumps(gold), None):
        assert mask_score(gold, STAR, answer=answer) == pytest.approx(expected)


def test_the_whole_image_does_not_pay():
    value = {
        "polygon": [{"bbox_2d": [0, 0, 1000, 1000], "points": [[-100, -100], [100, -100], [100, 100], [-100, 100]]}]
    }
    assert mask_score(value) == pytest.approx(MASK.mean())
    assert MASK.mean() < 0.4 < mask_score(encode_mask(MASK))


def test_where_an_outline_begins_does_not_matter():
    scores = []
    for start in (1, 16):  # another point to begin at, other numbers
        scores.append(mask_score(encode_mask(MASK, "fourier", 7, start)))
    assert scores == pytest.approx([scores[0]] * 2, abs=0.01)
    points = encode_mask(MASK, "polygon")["polygon"][0]
    turned = {**points, "points": points["points"][5:] + points["points"][:5]}
    assert mask_score({"polygon": [points]}) == mask_score({"polygon": [turned]})
    (part,) = encode_mask(MASK)["chebyshev"]
    backwards = {**part, **{axis: [n * (-1) ** k for k, n in enumerate(part[axis])] for axis in "xy"}}
    assert mask_score({"chebyshev": [part]}) == pytest.approx(mask_score({"chebyshev": [backwards]}), abs=1e-9)


def test_no_mask_is_not_applicable():
    assert score("mask_iou", completion(encode_mask(MASK)), answer=encode_mask(MASK)) is None


def test_the_mask_may_be_json_text():
    assert mask_score(encode_mask(MASK)) > 0.95
    columns = {"mask": json.dumps(write_rle(MASK)), **THOUSAND}
    assert score("mask_iou", completion(encode_mask(MASK)), **columns) == mask_score(encode_mask(MASK))


@pytest.mark.parametrize("mask", ["no JSON", {"size": [3, 3]}, {"size": [3, 3], "counts": [1]}, 7])
def test_a_broken_true_mask_is_an_error_that_names_the_record(mask: object):
    with pytest.raises(RuntimeError, match=r"reward 'mask_iou' on record 5 f:2: ValueError: .*must (be|sum to)"):
        score("mask_iou", completion(encode_mask(MASK)), mask=mask, id=5, where="f:2")


def test_the_records_number_of_terms_counts():
    short, long = encode_mask(MASK, terms=6), encode_mask(MASK, terms=8)
    assert mask_score(long) > 0.9 and mask_score(short) == 0.0
    assert mask_score(long, terms=6) == 0.0 and mask_score(short, terms=6) > 0.9
    assert mask_score(long, terms=None) > 0.9
    for value, terms, expected in ((short, 6, 1.0), (short, None, 0.0), (long, 6, 0.0), (long, None, 1.0)):
        assert score("format", completion(value), task="seg", terms=terms) == expected


SIZES = {"image_sizes": [(WIDTH, HEIGHT)], "processed_sizes": [(56, 84)]}


@pytest.mark.parametrize(
    ("space", "extent"),
    [("original", (WIDTH, HEIGHT)), ("resized", (56, 84)), ("thousand", (1000, 1000)), ("unit", (1, 1))],
)
def test_boxes_are_read_in_the_space_of_the_answer(space: str, extent: tuple[int, int]):
    part = dict(encode_mask(MASK)["chebyshev"][0])
    part["bbox_2d"] = [side * extent[n % 2] / 1000 for n, side in enumerate(part["bbox_2d"])]
    value, best = {"chebyshev": [part]}, mask_score(encode_mask(MASK))
    assert mask_score(value, answer_space=space, **SIZES) == pytest.approx(best, abs=0.002)
    if space != "thousand":
        assert mask_score(value) < 0.5  # without facts: in the record's own space
        assert mask_score(value, answer_space=space) < 0.5


def test_the_mask_of_a_later_image_uses_its_size():
    sizes = {"image_sizes": [(10, 10), (WIDTH, HEIGHT)], "processed_sizes": [None, (56, 84)]}
    value = encode_mask(MASK, extent=(56, 84))
    assert mask_score(value, answer_space="resized", box_image=1, **sizes) > 0.9
    assert mask_score(value, answer_space="resized", **sizes) < 0.5
    value = encode_mask(MASK, extent=(WIDTH, HEIGHT))
    assert mask_score(value, answer_space="original", box_image=1, **sizes) > 0.9
    assert mask_score(value, answer_space="original", **sizes) < 0.5


def test_an_image_of_another_size_than_its_mask_is_the_same_picture():
    sizes = {"image_sizes": [(2 * WIDTH, 2 * HEIGHT)], "processed_sizes": [None]}
    assert mask_score(encode_mask(MASK, extent=(2 * WIDTH, 2 * HEIGHT)), answer_space="original", **sizes) > 0.9


def spoilt() -> list[str]:
    """Answers that are almost the right one."""
    text = json.dumps(encode_mask(MASK))
    number = text.index('"x": [') + len('"x": [')
    return [
        text.replace('"x": [', '"x": [NaN, '),
        text.replace('"x": [', '"x": [0, '),
        text[:number] + '"left"' + text[text.index(",", number) :],
        text[:number] + "1e999" + text[text.index(",", number) :],
        text[:number] + "-Infinity" + text[text.index(",", number) :],
        text[:number] + "9" * 400 + text[text.index(",", number) :],
        text[:number] + "null" + text[text.index(",", number) :],
        text.replace("chebyshev", "Chebyshev"),
        text[:-1],
        text + text,
        "the dog",
        "None",
        "{}",
        "[" * 5000,
        '{"chebyshev": [], "chebyshev": ' + text[len('{"chebyshev": ') :],
        str(encode_mask(MASK)),  # Python's quotes
    ]


@pytest.mark.parametrize("text", spoilt(), ids=range(len(spoilt())))
def test_what_is_no_shape_earns_nothing(text: str):
    assert mask_score(text) == 0.0
    assert score("format", completion(text), task="seg") == 0.0


def test_no_answer_block_earns_nothing():
    assert score("mask_iou", json.dumps(encode_mask(MASK)), mask=write_rle(MASK), **THOUSAND) == 0.0


GOOD = json.dumps(encode_mask(MASK))


@given(
    place=st.integers(0, len(GOOD)),
    cut=st.integers(0, 6),
    put=st.one_of(st.text(max_size=6), st.sampled_from(["NaN", "1e400", "-1", "[", "]}", "9" * 50, '"', ", 3"])),
)
@settings(max_examples=300)
def test_any_change_of_an_answer_is_a_score_from_0_to_1(place: int, cut: int, put: str):
    text = GOOD[:place] + put + GOOD[place + cut :]
    assert 0.0 <= mask_score(text) <= 1.0
    assert score("format", completion(text), task="seg") in (0.0, 1.0)


@pytest.mark.parametrize("codec", CODECS)
def test_the_ideal_completion_has_the_form_and_is_paid(codec: str):
    gold = encode_mask(MASK, codec)
    for answer in (gold, json.dumps(gold)):
        record = Record(
            id=1, question="the disc", answer=answer, task="seg", extra={"mask": write_rle(MASK), **THOUSAND}
        )
        assert score("format", ideal_completion(record), record=record) == 1.0
        assert score("mask_iou", ideal_completion(record), record=record) > 0.85


def test_the_form_is_one_codec_and_nothing_around_it():
    (part,) = encode_mask(MASK)["chebyshev"]
    good = {"chebyshev": [part]}
    assert score("format", completion(good), task="seg") == 1.0
    for bad in (part, [part], {**good, "fourier": [part]}, {"chebyshev": part}, f"The outline: {json.dumps(good)}"):
        assert score("format", completion(bad), task="seg") == 0.0
    assert score("format", json.dumps(good), task="seg") == 0.0
    assert score("format", TASKS["seg"].example.replace("</think>", ""), task="seg") == 0.0


def test_a_batch_is_scored_as_a_trainer_calls_it():
    record = Record(id=1, question="q", answer=None, task="seg", extra={"mask": write_rle(MASK)})
    texts = [[{"role": "assistant", "content": completion(value)}] for value in (encode_mask(MASK), "no")]
    facts = {"image_sizes": [[(WIDTH, HEIGHT)]] * 2, "answer_space": ["thousand"] * 2}
    values = make_reward("mask_iou")(prompts=None, completions=texts, record=[record] * 2, **facts)
    assert values == [mask_score(encode_mask(MASK)), 0.0]
