"""COCO mean average precision over a dataset with a weight for each example.

Matching uses pycocotools' COCOeval once, since it depends on single images only. The accumulation of COCOeval
is reimplemented with a weight for each example, which the bootstrap and the paired tests need.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlm_grpo.records import JsonObject

if TYPE_CHECKING:
    from pycocotools.coco import COCO


MAX_DETECTIONS = 100  # per label and image, as in COCO
RECALLS = np.linspace(0, 1, 101)
IOUS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class LabelMatches:
    """The detections of one label in all examples, by decreasing confidence.

    `examples` (D,) is the example of each detection, `is_right` (10, D) whether it is matched at each IoU, `truths`
    (N,) the number of target boxes in each example.
    """

    examples: np.ndarray
    is_right: np.ndarray
    truths: np.ndarray


def average_precision(labels: Sequence[LabelMatches], weights: np.ndarray, ious: slice = slice(None)) -> float | None:
    """Return the mean average precision, 0 to 1, of examples with weights (N,); None without target boxes.

    As in COCO, it is the mean over labels and IoU thresholds; labels without target boxes are ignored.

    Args:
        labels: the result of `match_labels`.
        ious: slice of the thresholds .50, .55, ... .95; `slice(0, 1)` is AP50.
    """
    values = [_label_precision(label, weights, ious) for label in labels]
    values_with_truth = [value for value in values if value is not None]
    return float(np.mean(values_with_truth)) if values_with_truth else None


def _label_precision(label: LabelMatches, weights: np.ndarray, ious: slice) -> float | None:
    """Return the 101-point interpolated precision of one label, the mean over thresholds."""
    total = float(weights @ label.truths)
    if total == 0:
        return None
    counts = weights[label.examples]
    true_positives = np.cumsum(label.is_right[ious] * counts, axis=1)  # (thresholds, D)
    detections = np.cumsum(counts)
    precision = np.divide(true_positives, detections, out=np.zeros_like(true_positives), where=detections > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    recall = true_positives / total
    return float(np.mean([row[np.searchsorted(part, RECALLS)] for row, part in zip(padded, recall, strict=True)]))


def match_labels(evidence: Sequence[JsonObject]) -> list[LabelMatches]:
    """Return every label that has target boxes, with its detections matched by COCOeval.

    Args:
        evidence: per example, `truth` as (label, x1, y1, x2, y2) and `found` as (label, confidence, x1, y1, x2,
            y2). The boxes of an example are in the same coordinate space, on which the overlap does not depend.

    Raises:
        ImportError: pycocotools is missing.
    """
    names = sorted({item[0] for example in evidence for item in example["truth"]})
    if not names:
        return []
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise ImportError("mAP needs pycocotools: pip install pycocotools") from error
    numbers = {name: number for number, name in enumerate(names, 1)}
    where: dict[str, set[int]] = {name: set() for name in names}
    for example, entry in enumerate(evidence):
        for item in (*entry["truth"], *entry["found"]):
            where.get(item[0], set()).add(example)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = [COCO(), COCO()]
        for part, key in zip(coco, ("truth", "found"), strict=True):
            part.dataset = {
                "images": [{"id": number} for number in range(len(evidence))],
                "categories": [{"id": number, "name": name} for name, number in numbers.items()],
                "annotations": list(_annotations(evidence, key, numbers)),
            }
            part.createIndex()
        return [_match_label(coco, number, sorted(where[name]), len(evidence)) for name, number in numbers.items()]


def _match_label(coco: Sequence[COCO], label: int, examples: list[int], size: int) -> LabelMatches:
    """Match one label, only on the examples that have it, because matching is slow."""
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(*coco, iouType="bbox")
    judge.params.catIds, judge.params.imgIds = [label], examples
    judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e20]], ["all"], [MAX_DETECTIONS]
    judge.params.iouThrs = IOUS
    judge.evaluate()
    return _join_images(judge.evalImgs, size)


def _annotations(evidence: Sequence[JsonObject], key: str, numbers: Mapping[str, int]) -> Iterator[JsonObject]:
    identifier = 0
    for example, entry in enumerate(evidence):
        for label, *rest in entry[key]:
            if label not in numbers:
                continue
            identifier += 1
            x1, y1, x2, y2 = rest[-4:]
            box = [x1, y1, max(0, x2 - x1), max(0, y2 - y1)]
            common = {"id": identifier, "image_id": example, "category_id": numbers[label], "iscrowd": 0}
            yield {**common, "bbox": box, "area": box[2] * box[3], "score": rest[0]}


def _join_images(images: Sequence[JsonObject | None], size: int) -> LabelMatches:
    """Return the results of one label in all images, in COCO's order: by confidence, then by image."""
    scores, examples, is_match, truths = (
        [np.zeros(0)],
        [np.zeros(0, int)],
        [np.zeros((len(IOUS), 0), bool)],
        np.zeros(size),
    )
    for image in filter(None, images):
        truths[image["image_id"]] = len(image["gtIds"])
        scores.append(np.asarray(image["dtScores"], dtype=float))
        examples.append(np.full(len(image["dtScores"]), image["image_id"]))
        is_match.append(np.asarray(image["dtMatches"]).reshape(len(IOUS), -1) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    return LabelMatches(np.concatenate(examples)[order], np.concatenate(is_match, axis=1)[:, order], truths)
