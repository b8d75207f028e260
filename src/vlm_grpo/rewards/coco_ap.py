"""COCO's average precision (arXiv:1405.0312, as pycocotools computes it) of the list of boxes in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vlm_grpo.records import Record
from vlm_grpo.rewards.detection import Detection, Lists, compared, detection_pair, overlaps

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # as pycocotools rounds them
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes a label that COCO looks at


def od_ap_reward(completion: str, record: Record, *, thresholds: Sequence[float] = THRESHOLDS) -> float | None:
    """COCO AP over IoU 0.50 to 0.95, the mean over true and invented labels; None when the truth is no list.

    An invented label is a class of false positives alone, so its AP is 0; so is that of entries that cannot be read. A
    box without a confidence has confidence 1. Among boxes of equal confidence the wrong ones rank first, so that twenty
    equal boxes are worth a twentieth. Surplus boxes of a lower confidence cost nothing once all true ones are found:
    that is how AP is defined, and why `detection` is the better reward.
    """
    lists = detection_pair(completion, record)
    return None if lists is None else mean_precision(lists, thresholds)


def mean_precision(lists: Lists, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Average precision, the mean over thresholds and over the labels of both lists; 1 for two empty lists."""
    if not lists.given or not lists.right:
        return float(lists.given == lists.right)
    labels = {item.label for item in (*lists.given, *lists.right)}
    total = 0.0
    for label in sorted(labels & {item.label for item in lists.right}):
        given, right = ([item for item in side if item.label == label] for side in lists)
        total += label_precision(given, right, thresholds)
    return total / len(labels)


def label_precision(given: list[Detection], right: list[Detection], thresholds: Sequence[float]) -> float:
    """Average precision of the boxes of one label, the mean over IoU thresholds."""
    if not given:
        return 0.0
    values = overlaps(given, right)
    sure = [item.confidence for item in given]
    ranked = sorted(range(len(given)), key=lambda row: (-sure[row], -values[row].max()))[:MOST]
    rows = values[ranked].tolist()
    total = 0.0
    for threshold in thresholds:
        hits = _hits(rows, threshold)
        order = sorted(range(len(ranked)), key=lambda place: (-sure[ranked[place]], hits[place]))
        total += _area([hits[place] for place in order], len(right))
    return total / len(thresholds)


def _hits(rows: list[list[float]], threshold: float) -> list[bool]:
    """Whether each box, surest first, finds a true box of at least this IoU that none before it took."""
    taken: set[int] = set()
    hits = []
    for row in rows:
        free = [(value, column) for column, value in enumerate(row) if column not in taken and value >= threshold]
        if free:
            taken.add(max(free)[1])
        hits.append(bool(free))
    return hits


def _area(hits: list[bool], true: int) -> float:
    """Interpolated precision, the mean over 101 recalls; `hits` are ranked, the surest first."""
    ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
    reached, best, total = _recalls_reached(true), 0.0, 0.0
    for found in range(len(ranks), 0, -1):
        best = max(best, found / ranks[found - 1])  # at this recall or a higher one
        total += best * (reached[found] - reached[found - 1])
    return total / len(RECALLS)


@lru_cache(maxsize=1024)
def _recalls_reached(true: int) -> tuple[int, ...]:
    """How many of the 101 recalls are reached with 0, 1, ... `true` boxes found; recall 0 only with the first."""
    return 0, *(int((found / true >= RECALLS).sum()) for found in range(1, true + 1))


def od_ap(answer: str, truth: str, record: Record) -> float | None:
    """The `od_ap` reward: COCO AP, invented labels counted."""
    lists = compared(answer, truth, record)
    return None if lists is None else mean_precision(lists)


def od_ap50(answer: str, truth: str, record: Record) -> float | None:
    """The `od_ap50` reward: COCO AP at IoU 0.5, invented labels counted."""
    lists = compared(answer, truth, record)
    return None if lists is None else mean_precision(lists, (0.5,))


def od_length(answer: str, truth: str, record: Record) -> float | None:
    """`od_ap`, times true / given where more boxes are given than there are."""
    lists = compared(answer, truth, record)
    if lists is None:
        return None
    surplus = len(lists.given) > len(lists.right) > 0 if lists.given else False
    return mean_precision(lists) * (len(lists.right) / len(lists.given) if surplus else 1.0)
