from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_grpo.evaluation.mean_ap import average_precision, match_labels

FIFTY = slice(0, 1)


def coco_stats(evidence: list[dict[str, Any]]) -> tuple[float, float]:
    """AP and AP50 by pycocotools alone."""
    names = sorted({item[0] for example in evidence for item in example["truth"]})
    parts = []
    for key in ("truth", "found"):
        boxes = []
        for image, example in enumerate(evidence):
            for label, *rest in example[key]:
                if label in names:
                    x1, y1, x2, y2 = rest[-4:]
                    box = [x1, y1, x2 - x1, y2 - y1]
                    entry = {"image_id": image, "category_id": names.index(label) + 1, "bbox": box, "score": rest[0]}
                    boxes.append({**entry, "id": len(boxes) + 1, "area": box[2] * box[3], "iscrowd": 0})
        part = COCO()
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
        images = [{"id": number} for number in range(len(evidence))]
        part.dataset = {"images": images, "categories": categories, "annotations": boxes}
        part.createIndex()
        parts.append(part)
    judge = COCOeval(*parts, iouType="bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[0], judge.stats[1]


def scene(random: np.random.Generator) -> dict[str, Any]:
    """Up to four true boxes of three labels; some found again, moved a little, and some invented."""
    truth, found = [], []
    for _ in range(random.integers(0, 5)):
        label, corner = "abc"[random.integers(3)], random.uniform(0, 600, 2)
        box = [*corner, *(corner + random.uniform(50, 300, 2))]
        truth.append([label, *box])
        if random.random() < 0.7:
            moved = (np.array(box) + random.normal(0, 12, 4)).tolist()
            found.append([label, round(random.random(), 3), *moved])
    for _ in range(random.integers(0, 3)):
        corner = random.uniform(0, 600, 2)
        found.append(["abcd"[random.integers(4)], round(random.random(), 3), *corner, *(corner + 100)])
    return {"truth": truth, "found": found}


def test_average_precision_equals_pycocotools():
    evidence = [scene(np.random.default_rng(number)) for number in range(40)]
    with contextlib.redirect_stdout(io.StringIO()):
        expected = coco_stats(evidence)
    ones = np.ones(40)
    assert 0.1 < expected[0] < 0.9
    assert average_precision(match_labels(evidence), ones) == pytest.approx(expected[0], abs=1e-9)
    assert average_precision(match_labels(evidence), ones, FIFTY) == pytest.approx(expected[1], abs=1e-9)


def test_weights_count_examples_that_often():
    evidence = [scene(np.random.default_rng(number)) for number in range(12)]
    weights = np.random.default_rng(1).integers(0, 4, 12)
    repeated = [example for example, weight in zip(evidence, weights, strict=True) for _ in range(weight)]
    labels = match_labels(evidence)
    found = average_precision(labels, weights.astype(float))
    assert found == pytest.approx(average_precision(match_labels(repeated), np.ones(len(repeated))), abs=1e-9)
    assert found != pytest.approx(average_precision(labels, np.ones(12)), abs=1e-3)


def test_average_precision_by_hand():
    """One true box in each of two images; of two answers the surer is invented: precision 1/2 up to recall 1/2.

    Of the 101 recalls 0, 0.01, ..., 1 the first 51 are reached, each with precision 1/2.
    """
    box, elsewhere = [0, 0, 100, 100], [500, 500, 600, 600]
    evidence = [
        {"truth": [["", *box]], "found": [["", 0.5, *box], ["", 0.9, *elsewhere]]},
        {"truth": [["", *box]], "found": []},
    ]
    assert average_precision(match_labels(evidence), np.ones(2)) == pytest.approx(51 / 101 / 2)
    assert average_precision(match_labels(evidence), np.array([0.0, 1.0])) == 0.0


def test_average_precision_of_nothing_true_is_none():
    evidence = [{"truth": [], "found": [["a", 0.5, 0, 0, 9, 9]]}]
    assert average_precision(match_labels(evidence), np.ones(1)) is None
