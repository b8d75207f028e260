"""COCO average precision (arXiv:1405.0312, as in pycocotools) of the list of boxes in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vlm_grpo.records import Record
from vlm_grpo.rewards.detection import Detection, DetectionPair, detection_pair, iou_matrix, pair_detections

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # as pycocotools rounds them
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # boxes per label that COCO evaluates


def od_ap_reward(completion: str, record: Record, *, thresholds: Sequence[float] = THRESHOLDS) -> float | None:
    """Return COCO AP at IoU 0.50 to 0.95, the mean over target and predicted labels; None without a list of boxes.

    A label that does not occur in the gold answer is a class of false positives with AP 0; so is an entry that cannot
    be parsed. A box without a confidence has confidence 1. Ties in confidence are broken in favor of wrong boxes, so
    that twenty equal boxes score 1/20. Surplus boxes of lower confidence cost nothing once all target boxes are
    matched: this follows from the definition of AP, and is why `detection` is the better reward.
    """
    pair = detection_pair(completion, record)
    return None if pair is None else mean_average_precision(pair, thresholds)


def mean_average_precision(pair: DetectionPair, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Return the average precision, the mean over thresholds and labels of both lists; 1 for two empty lists."""
    if not pair.predicted or not pair.target:
        return float(pair.predicted == pair.target)
    labels = {item.label for item in (*pair.predicted, *pair.target)}
    total = 0.0
    for label in sorted(labels & {item.label for item in pair.target}):
        predicted, target = ([item for item in side if item.label == label] for side in (pair.predicted, pair.target))
        total += label_average_precision(predicted, target, thresholds)
    return total / len(labels)


def label_average_precision(predicted: list[Detection], target: list[Detection], thresholds: Sequence[float]) -> float:
    """Return the average precision of the boxes of one label, the mean over IoU thresholds."""
    if not predicted:
        return 0.0
    values = iou_matrix(predicted, target)
    confidences = [item.confidence for item in predicted]
    ranked = sorted(range(len(predicted)), key=lambda row: (-confidences[row], -values[row].max()))[:MAX_DETECTIONS]
    rows = values[ranked].tolist()
    total = 0.0
    for threshold in thresholds:
        hits = _true_positives(rows, threshold)
        order = sorted(range(len(ranked)), key=lambda place: (-confidences[ranked[place]], hits[place]))
        total += _interpolated_precision([hits[place] for place in order], len(target))
    return total / len(thresholds)


def _true_positives(rows: list[list[float]], threshold: float) -> list[bool]:
    """Return whether each box, in order of decreasing confidence, matches a target box that is still unmatched."""
    matched_columns: set[int] = set()
    hits = []
    for row in rows:
        free = [
            (value, column) for column, value in enumerate(row) if column not in matched_columns and value >= threshold
        ]
        if free:
            matched_columns.add(max(free)[1])
        hits.append(bool(free))
    return hits


def _interpolated_precision(hits: list[bool], true: int) -> float:
    """Return the interpolated precision, the mean over 101 recalls; `hits` are ordered by decreasing confidence."""
    ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
    reached, best, total = _recalls_reached(true), 0.0, 0.0
    for hit_count in range(len(ranks), 0, -1):
        best = max(best, hit_count / ranks[hit_count - 1])  # at this recall or a higher one
        total += best * (reached[hit_count] - reached[hit_count - 1])
    return total / len(RECALLS)


@lru_cache(maxsize=1024)
def _recalls_reached(true: int) -> tuple[int, ...]:
    """Return how many of the 101 recalls are reached with 0, 1, ... `true` matches; recall 0 only with the first."""
    return 0, *(int((hit_count / true >= RECALLS).sum()) for hit_count in range(1, true + 1))


def od_ap(answer: str, truth: str, record: Record) -> float | None:
    """The `od_ap` reward: COCO AP, in which predicted labels that do not occur in the gold answer count as 0."""
    pair = pair_detections(answer, truth, record)
    return None if pair is None else mean_average_precision(pair)


def od_ap50(answer: str, truth: str, record: Record) -> float | None:
    """The `od_ap50` reward: COCO AP at IoU 0.5, in which labels that do not occur in the gold answer count as 0."""
    pair = pair_detections(answer, truth, record)
    return None if pair is None else mean_average_precision(pair, (0.5,))


def od_length(answer: str, truth: str, record: Record) -> float | None:
    """`od_ap`, multiplied by target / predicted count if there are more predicted than target boxes."""
    pair = pair_detections(answer, truth, record)
    if pair is None:
        return None
    true, given = len(pair.target), len(pair.predicted or [])
    return mean_average_precision(pair) * (true / given if given > true > 0 else 1.0)
