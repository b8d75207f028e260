"""Lists of boxes against numbers worked out by hand, and AP against pycocotools."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_grpo.boxes import Box, iou
from vlm_grpo.rewards import score
from vlm_grpo.rewards.detection import Detection, iou_matrix, parse_detections


def boxes(*items: Any) -> list[dict[str, Any]]:
    """(x1, y1, x2, y2, label[, confidence]) each as an object."""
    keys = ("label", "Confidence")
    return [{"bbox_2d": list(item[:4]), **dict(zip(keys, item[4:], strict=False))} for item in items]


def said(*items: Any) -> str:
    return f"<think>a</think><answer>{json.dumps(boxes(*items))}</answer>"


def answered(text: str) -> str:
    return f"<answer>{text}</answer>"


DOG, CAT = (0, 0, 10, 10, "dog"), (50, 50, 60, 60, "cat")
TRUTH = boxes(DOG, CAT)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([DOG, CAT], 1.0),
        ([CAT, DOG], 1.0),
        ([DOG], 1 / 2),
        ([(0, 0, 10, 8, "dog"), CAT], (0.8 + 1) / 2),
        ([(0, 0, 10, 5, "dog"), CAT], (0.5 + 1) / 2),  # IoU 0.5 is enough
        ([(0, 0, 10, 4.9, "dog"), CAT], 1 / 2),
        ([(*DOG[:4], "cat"), CAT], 1 / 2),
        ([(*DOG[:4], "The Dog."), CAT], 1.0),
        ([DOG, DOG, CAT], 2 / 3),  # a duplicate
        ([DOG, CAT, (70, 70, 80, 80, "bird")], 2 / 3),  # invented
        ([(10, 10, 0, 0, "dog"), CAT], 1 / 2),  # swapped corners
        ([], 0.0),
    ],
)
def test_detection(items: list[Any], expected: float):
    assert score("detection", said(*items), answer=TRUTH) == pytest.approx(expected)
    assert score("accuracy", said(*items), answer=TRUTH, method="detection") == pytest.approx(expected)


def test_matching_is_the_best_one_and_not_the_greedy_one():
    """Strips from 0 to 100 and from 15 to 115 are there. 5 to 105 has IoU 95/105 and 90/110 with them, 0 to 70 has 0.7
    and 55/115, which is no match. Greedy takes 95/105 and is left with nothing; the best pairing has 90/110 + 0.7."""
    truth = boxes((0, 0, 100, 10, "x"), (15, 0, 115, 10, "x"))
    given = [(5, 0, 105, 10, "x"), (0, 0, 70, 10, "x")]
    for order in (given, given[::-1]):
        assert score("detection", said(*order), answer=truth) == pytest.approx((90 / 110 + 0.7) / 2)


def brute_force(given: list[tuple], right: list[tuple], above: float = 0.5) -> float:
    """The best sum over all pairings, each IoU by boxes.iou."""
    longer, shorter = (given, right) if len(given) >= len(right) else (right, given)
    best = 0.0
    for chosen in itertools.permutations(longer, len(shorter)):
        values = [iou(Box(*a[:4]), Box(*b[:4])) * (a[4] == b[4]) for a, b in zip(chosen, shorter, strict=True)]
        best = max(best, sum(value for value in values if value >= above))
    return best / max(1, len(longer))


SIDE = st.integers(0, 12)
ITEM = st.tuples(SIDE, SIDE, SIDE, SIDE, st.sampled_from("ab"))


@given(given_items=st.lists(ITEM, max_size=4), target=st.lists(ITEM, min_size=1, max_size=4))
@settings(max_examples=150)
def test_detection_is_the_best_of_all_pairings(given_items: list[tuple], target: list[tuple]):
    value = score("detection", said(*given_items), answer=boxes(*target))
    assert value == pytest.approx(brute_force(given_items, target))


@given(one=st.lists(ITEM, max_size=4), other=st.lists(ITEM, max_size=4))
@settings(max_examples=100)
def test_overlaps_are_those_of_single_boxes(one: list[tuple], other: list[tuple]):
    left, right = ([Detection(Box(*map(float, i[:4])), i[4]) for i in side] for side in (one, other))
    table = iou_matrix(left, right)
    assert table.shape == (len(one), len(other))
    for row, column in np.ndindex(table.shape):
        a, b = left[row], right[column]
        assert table[row, column] == pytest.approx(iou(a.box, b.box) if a.label == b.label else 0.0)


@pytest.mark.parametrize("name", ["detection", "ovd", "od_ap", "od_ap50"])
def test_nothing_there(name: str):
    for truth in ("None", [], "[]", "<answer>None</answer>"):
        for right in ("None", "none", "[]", "None."):
            assert score(name, answered(right), answer=truth) == 1.0
        for wrong in ("", "null", "nothing", "None, I think", "None [0, 0, 1, 1]", "{}", "garbage", "None\nNone", "0"):
            assert score(name, answered(wrong), answer=truth) == 0.0
        assert score(name, said(DOG), answer=truth) == 0.0
    assert score(name, answered("None"), answer=TRUTH) == 0.0
    assert score(name, answered("[]"), answer=TRUTH) == 0.0


@pytest.mark.parametrize("name", ["detection", "ovd", "od_ap", "od_ap50"])
def test_a_truth_that_is_no_list_of_boxes_does_not_apply(name: str):
    for truth in ("red", None, 3, '[{"label": "dog"}]', '["a", "b"]'):
        assert score(name, said(DOG), answer=truth) is None


@pytest.mark.parametrize(
    "item",
    [
        '{"bbox_2d": [0, 0, 10], "label": "dog"}',
        '{"bbox_2d": ["0", "0", "10", "10"], "label": "dog"}',
        '{"bbox_2d": [0, 0, 10, true], "label": "dog"}',
        '{"bbox_2d": [0, 0, 10, 1e999], "label": "dog"}',
        '{"bbox_2d": [0, 0, 10, ' + "9" * 400 + '], "label": "dog"}',
        '{"bbox_2d": [0, 0, 10, 10], "label": 3}',
        '{"bbox_2d": [0, 0, 10, 10], "Position": [0, 0, 10, 10], "label": "dog"}',
        '{"bbox_2d": [0, 0, 10, 10], "label": "dog", "Confidence": 1.5}',
        '{"bbox_2d": [0, 0, 10, 10], "label": "dog", "Confidence": "high"}',
        '{"label": "dog"}',
        "null",
        "7",
        '"dog"',
    ],
)
def test_an_entry_that_cannot_be_read_counts_as_one_that_is_wrong(item: str):
    text = f"[{json.dumps(boxes(DOG)[0])}, {json.dumps(boxes(CAT)[0])}, {item}]"
    assert score("detection", answered(text), answer=TRUTH) == pytest.approx(2 / 3)
    assert score("od_ap50", answered(text), answer=TRUTH) == pytest.approx(2 / 3)


def test_forms_that_are_read():
    whole = [{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]
    for text in (json.dumps(whole), json.dumps(whole[0]), f"```json\n{json.dumps(whole)}\n```"):
        assert score("detection", answered(text), answer=whole) == 1.0
    assert score("detection", answered(str(whole)), answer=whole) == 0.0  # a Python repr is no JSON
    for text in ("[1, 2, 3, 4]", "[[1, 2, 3, 4]]"):
        assert score("detection", answered(text), answer=whole) == 1.0  # the truth has one label
    assert [item.box for item in parse_detections("[[-1, 2, 3, 4.5], [5, 6, 7, 8]]")] == [(0, 2, 3, 4.5), (5, 6, 7, 8)]


def test_labels_that_only_one_side_has():
    position = answered('[{"Position": [0, 0, 10, 10], "Confidence": 1.0}]')
    assert score("detection", position, answer=boxes(DOG)) == 1.0  # the truth's only label
    assert score("detection", position, answer=TRUTH) == 0.0  # which of two is not said
    assert score("detection", said(DOG), answer=[{"Position": [0, 0, 10, 10]}]) == 1.0  # no labels asked for


SIZES = {"image_sizes": [(200, 100)], "processed_sizes": [(112, 56)]}


@pytest.mark.parametrize("space", ["original", "resized", "thousand", "unit"])
def test_position_is_always_in_thousandths_and_bbox_2d_in_the_model_s_space(space: str):
    """A tenth to a half of each side of a 200 x 100 image."""
    own = {"original": [20, 10, 100, 50], "resized": [11.2, 5.6, 56, 28]}
    own.update(thousand=[100, 100, 500, 500], unit=[0.1, 0.1, 0.5, 0.5])
    position = {"Position": [100, 100, 500, 500], "Confidence": 0.5}
    box = {"bbox_2d": own[space], "label": ""}
    for truth, named in (
        ([{"bbox_2d": [20, 10, 100, 50]}], {}),
        ([{"bbox_2d": [100, 100, 500, 500]}], {"box_space": "thousand"}),
        ([{"Position": [100, 100, 500, 500]}], {}),
    ):
        columns = {"answer": truth, "answer_space": space, **SIZES, **named}
        for answer in (position, box):
            assert score("detection", answered(json.dumps([answer])), **columns) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([(*DOG, 1.0)], 1.0),
        ([(*DOG, 0.5)], (1 + 0.75) / 2),  # 2 * .5 - .25
        ([(*DOG, 0.0)], 0.5),
        ([DOG], 0.5),  # without a confidence
        ([(0, 0, 10, 8, "dog", 1.0)], (0.8 + 1) / 2),
        ([(*CAT, 1.0)], -0.5),
        ([(*CAT, 0.5)], -0.125),
        ([(*CAT, 0.0)], 0.0),
        ([(*DOG, 1.0), (*CAT, 1.0)], (2 - 1) / 4),
        ([(*DOG, 1.0), (*CAT, 0.0)], 0.5),
    ],
)
def test_ovd(items: list[Any], expected: float):
    assert score("ovd", said(*items), answer=boxes(DOG)) == pytest.approx(expected)


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_an_honest_confidence_pays_best(chance: float):
    """The box is right with this probability: no other confidence, and no surplus box, has a higher expectation."""

    def expected(*surplus: tuple, sure: float) -> float:
        right = score("ovd", said((*DOG, sure), *surplus), answer=boxes(DOG))
        wrong = score("ovd", said((*CAT, sure), *surplus), answer=boxes(DOG))
        return chance * right + (1 - chance) * wrong

    honest = expected(sure=chance)
    assert honest == pytest.approx((chance + chance**2) / 2)
    assert all(expected(sure=sure) < honest for sure in np.linspace(0, 1, 21) if abs(sure - chance) > 1e-9)
    for sure in (0.0, 0.5, 1.0):
        assert expected((80, 80, 90, 90, "dog", sure), sure=chance) <= honest


def coco_precision(given: list[tuple], right: list[tuple]) -> tuple[float, float]:
    """AP and AP50 of pycocotools; an invented label is a class of AP 0, which COCOeval would leave out."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    true, invented = {item[4] for item in right}, {item[4] for item in given} - {item[4] for item in right}
    numbers = {label: number for number, label in enumerate(sorted(true), 1)}

    def rows(items: list[tuple]) -> list[dict[str, Any]]:
        return [
            {"id": n, "image_id": 1, "category_id": numbers[i[4]], "bbox": [i[0], i[1], i[2] - i[0], i[3] - i[1]],
             "area": (i[2] - i[0]) * (i[3] - i[1]), "iscrowd": 0, "score": i[5] if len(i) > 5 else 1}
            for n, i in enumerate(items, 1) if i[4] in numbers
        ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        parts = [COCO(), COCO()]
        for part, items in zip(parts, (right, given), strict=True):
            part.dataset = {"images": [{"id": 1}], "categories": [{"id": n} for n in numbers.values()]}
            part.dataset["annotations"] = rows(items)
            part.createIndex()
        judge = COCOeval(*parts, iouType="bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    share = len(true) / (len(true) + len(invented))
    return judge.stats[0] * share, judge.stats[1] * share


@pytest.mark.parametrize("seed", range(60))
def test_average_precision_is_that_of_pycocotools(seed: int):
    source = random.Random(seed)

    def item(labels: str) -> tuple:
        x, y, width, height = (source.randint(low, 40) for low in (0, 0, 5, 5))
        return x, y, x + width, y + height, source.choice(labels)

    right = [item("abc") for _ in range(source.randint(1, 8))]
    sure = source.sample(range(1, 1000), 20)  # all different
    near = [(*(c + source.randint(-2, 2) for c in i[:4]), i[4]) for i in right]
    given = [(*map(lambda c: max(0, c), i[:4]), i[4]) for i in near if source.random() < 0.8]
    given += [item("abcd") for _ in range(source.randint(1 - bool(given), 6))]
    given = [(*i, s / 1000) for i, s in zip(given, sure, strict=False)]
    given = [i for i in given if i[0] < i[2] and i[1] < i[3]]
    expected = coco_precision(given, right)
    for name, value in zip(("od_ap", "od_ap50"), expected, strict=True):
        assert score(name, said(*given), answer=boxes(*right)) == pytest.approx(value, abs=1e-9)
        method = score("accuracy", said(*given), answer=boxes(*right), method=name)
        assert method == pytest.approx(value, abs=1e-9)


def test_wrong_boxes_of_equal_confidence_rank_first():
    """One right box among three: precision 1/3 at every recall, wherever it stands."""
    items = [DOG, (70, 70, 80, 80, "dog"), (80, 80, 90, 90, "dog")]
    for order in itertools.permutations(items):
        assert score("od_ap", said(*order), answer=boxes(DOG)) == pytest.approx(1 / 3)
        sure = [(*item, 0.9 if item is DOG else 0.5) for item in order]
        assert score("od_ap", said(*sure), answer=boxes(DOG)) == pytest.approx(1.0)


def test_old_names():
    """Two true, three given (one of them invented): AP is 2 / 3 of perfect, odLength 2/3 of that again."""
    text = said(DOG, CAT, (70, 70, 80, 80, "bird"))

    def value(method: str) -> float:
        return score("accuracy", text, answer=TRUTH, method=method)

    assert value("map") == value("od_ap") == value("od_ap50") == pytest.approx(2 / 3)
    assert value("odLength") == pytest.approx(4 / 9)
    assert value("weighted_sum") == pytest.approx(0.7 * 2 / 3 + 0.3 * (1 + 2 / 3) / 2)
    assert score("accuracy", said(DOG), answer=TRUTH, method="weighted_sum") == pytest.approx(0.7 / 2 + 0.3 * 0.75)
    assert score("accuracy", said(DOG), answer=TRUTH, method="odLength") == pytest.approx(0.5)
    for method in ("map", "odLength", "weighted_sum"):
        assert score("accuracy", answered("None"), answer="None", method=method) == 1.0
        assert score("accuracy", answered("None"), answer=TRUTH, method=method) == 0.0
        assert score("accuracy", answered("x"), answer=TRUTH, method=method) == 0.0
        assert score("accuracy", answered("x"), answer="red", method=method) is None
