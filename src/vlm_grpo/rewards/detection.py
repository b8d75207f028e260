"""Rewards for a list of labelled boxes by the best one-to-one matching with the true ones; how such lists are read.

Two forms are read, in any mixture: `{"bbox_2d": [x1, y1, x2, y2], "label": "dog"}`, in the space in which the model's
family answers, and `{"Position": [x1, y1, x2, y2], "Confidence": 0.9}`, always 0 to 1000 of each side. Both may carry
`label` and `Confidence`. "None" or an empty list says that nothing is there. COCO's average precision is in coco_ap.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlm_grpo.answer_parser import extract_json, ground_truth_text, parse_answer, python_literal
from vlm_grpo.boxes import Box
from vlm_grpo.records import Record
from vlm_grpo.rewards.iou import in_answer_space
from vlm_grpo.rewards.mcq import normalize_text

IOU_THRESHOLD = 0.5  # IoU from which on a box is the true one


def matched_ious(pair: DetectionPair, above: float = IOU_THRESHOLD) -> np.ndarray:
    """Return the IoU of each predicted box with its matched target box, (predicted,); 0 without a match.

    One to one, labels equal, IoU of at least `above`, and the sum as large as it can be (Hungarian matching).
    """
    predicted = pair.predicted or []
    values = iou_matrix(predicted, pair.target)
    values[values < above] = 0.0
    ious = np.zeros(len(predicted))
    if values.any():
        from scipy.optimize import linear_sum_assignment  # 0.3 s, only where boxes are matched

        rows, columns = linear_sum_assignment(values, maximize=True)
        ious[rows] = values[rows, columns]
    return ious


def detection_reward(completion: str, record: Record, *, above: float = IOU_THRESHOLD) -> float | None:
    """Return the sum of IoU of boxes matched by label at IoU >= `above` / max(true, predicted); None for no list.

    Surplus boxes, duplicates, invented labels and entries that cannot be read make `predicted` larger. "None" (or an
    empty list) scores 1 where there is no object and 0 elsewhere; an answer that is not a list scores 0.
    """
    pair = detection_pair(completion, record)
    return None if pair is None else matched_iou_score(pair, above)


def matched_iou_score(pair: DetectionPair, above: float = IOU_THRESHOLD) -> float:
    """Return the sum of matched IoU over the longer list, 0 to 1; 1 for two empty lists."""
    if pair.predicted is None:
        return 0.0
    longer = max(len(pair.predicted), len(pair.target))
    return float(matched_ious(pair, above).sum()) / longer if longer else 1.0


def ovd_reward(completion: str, record: Record, *, above: float = IOU_THRESHOLD) -> float | None:
    """Return half `detection`, half calibrated confidence, -0.5 to 1; None when the truth is no list.

    The second half is the sum of 2ch - c^2 over the given boxes / max(true, given), where c is the confidence and h is
    1 for a matched box, else 0. It is the Brier score moved so that a box which its writer gives no chance adds nothing
    (2ch - c^2 = h^2 - (c - h)^2): a box that is correct with probability p scores p^2 in expectation with c = p
    and less with any other c, so that neither "always 1" nor many boxes of confidence 0 help. A confident invention
    costs; a box without a confidence counts as confidence 0. Two empty lists score 1.
    """
    pair = detection_pair(completion, record)
    if pair is None:
        return None
    if not pair.predicted:
        return matched_iou_score(pair, above)
    ious = matched_ious(pair, above)
    confidences = np.array([item.confidence if item.has_confidence else 0.0 for item in pair.predicted])
    calibrated = 2 * confidences * (ious > 0) - confidences**2
    return float((ious + calibrated).sum()) / (2 * max(len(pair.predicted), len(pair.target)))


def detection(answer: str, truth: str, record: Record) -> float | None:
    """The `detection` reward: matched IoU over the longer list."""
    pair = pair_detections(answer, truth, record)
    return None if pair is None else matched_iou_score(pair)


def weighted_sum(answer: str, truth: str, record: Record) -> float | None:
    """0.7 of `detection`, and 0.3 for neither missing nor inventing boxes: 1 - (share missed + share surplus) / 2."""
    pair = pair_detections(answer, truth, record)
    if pair is None or not pair.predicted or not pair.target:
        return None if pair is None else matched_iou_score(pair)
    hits = int((matched_ious(pair) > 0).sum())
    complete = (hits / len(pair.target) + hits / len(pair.predicted)) / 2
    return 0.7 * matched_iou_score(pair) + 0.3 * complete


MAX_COORDINATE = 1e12  # larger coordinates are rejected; areas could become infinite
EMPTY_LIST_TEXTS = ("none", "no objects", "no object", "no objects found", "nothing")  # as datasets write them
UNREADABLE = "\0"  # label of an entry that cannot be parsed; no target has it


class Detection(NamedTuple):
    """One entry of a list: a normalized label, empty without one; confidence 1 if none was written."""

    box: Box
    label: str
    confidence: float = 1.0
    has_confidence: bool = False
    is_thousand: bool = False


class DetectionPair(NamedTuple):
    """Predicted detections (None if they cannot be parsed) and target detections, in one space and a fixed order."""

    predicted: list[Detection] | None
    target: list[Detection]


def detection_pair(completion: str, record: Record) -> DetectionPair | None:
    """Return the boxes of a completion and of its record; None when the ground truth is no list of boxes."""
    if record.answer is None:
        return None
    return pair_detections(parse_answer(completion, record.task) or "", ground_truth_text(record.answer), record)


def pair_detections(answer: str, truth: str, record: Record) -> DetectionPair | None:
    """Return the lists of an answer and a ground truth in one space; None when the truth is no list of boxes."""
    target = parse_target_detections(truth)
    if target is None:
        return None
    predicted = parse_detections(answer)
    placed = sorted(_in_answer_space(item, record, is_truth=True) for item in target)
    if predicted is None:
        return DetectionPair(None, placed)
    return DetectionPair(
        sorted((_in_answer_space(item, record) for item in _fill_in_labels(predicted, target)), key=_sort_key), placed
    )


def parse_detections(text: str) -> list[Detection] | None:
    """Return the entries of a list in the order of the text, parsable or not; None when it is no list."""
    if text.strip().rstrip(".").lower() == "none":
        return []
    value = extract_json(text)
    if isinstance(value, dict) or _parse_box(value) is not None:
        value = [value]
    return [_parse_detection(item) for item in value] if isinstance(value, list) else None


@lru_cache(maxsize=4096)
def parse_target_detections(text: str) -> list[Detection] | None:
    """Return the entries of a ground truth; None when it is no list, or one of them cannot be parsed.

    What data sets write is read more freely than what models do: Python's spelling of a list, "No objects".
    """
    value = python_literal(text)
    detections = (
        []
        if normalize_text(text) in EMPTY_LIST_TEXTS
        else parse_detections(text if value is text else json.dumps(value))
    )
    return None if detections is None or any(item.label == UNREADABLE for item in detections) else detections


def _parse_detection(item: object) -> Detection:
    """Return the entry as a detection; one of area zero, which matches nothing, where it cannot be parsed."""
    if isinstance(item, list):
        item = {"bbox_2d": item}
    if isinstance(item, dict) and ("bbox_2d" in item) != ("Position" in item):
        is_thousand = "Position" in item
        box = _parse_box(item["Position" if is_thousand else "bbox_2d"])
        label, confidence = item.get("label", ""), item.get("Confidence", item.get("confidence"))
        if box is not None and isinstance(label, str) and (confidence is None or _is_probability(confidence)):
            has_confidence = confidence is not None
            share = 1.0 if confidence is None else float(confidence)
            name = normalize_text(label) or label.strip().lower()  # an article alone is a name all the same
            return Detection(box, name, share, has_confidence, is_thousand)
    return Detection(Box(0.0, 0.0, 0.0, 0.0), UNREADABLE)


def _parse_box(value: object) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(number) in (int, float) and abs(number) <= MAX_COORDINATE for number in value):
        return None
    return Box(*(max(0.0, float(number)) for number in value))


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _fill_in_labels(predicted: Sequence[Detection], target: Sequence[Detection]) -> list[Detection]:
    """Return the predicted entries with the target's label where that has only one, and they or it leave it out."""
    labels = {item.label for item in target}
    if len(labels) != 1:
        return list(predicted)
    (only,) = labels
    return [
        item._replace(label=only) if item.label != UNREADABLE and (not item.label or not only) else item
        for item in predicted
    ]


def _in_answer_space(item: Detection, record: Record, is_truth: bool = False) -> Detection:
    if not (is_truth or item.is_thousand):
        return item
    return item._replace(box=in_answer_space(item.box, record, "thousand" if item.is_thousand else None))


def _sort_key(item: Detection) -> tuple[object, ...]:
    """Sort by label, then by falling confidence, so that the order in which a list was written never counts."""
    return item.label, -item.confidence, item.has_confidence, item.box


def iou_matrix(predicted: Sequence[Detection], target: Sequence[Detection]) -> np.ndarray:
    """Return the IoU of all pairs, (predicted, target); 0 where labels differ or a box has no area."""
    if not predicted or not target:
        return np.zeros((len(predicted), len(target)))
    one = np.array([item.box for item in predicted])[:, None]  # (given, 1, 4)
    other = np.array([item.box for item in target])[None]  # (1, right, 4)
    shared = np.clip(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0, None)
    shared = shared[..., 0] * shared[..., 1]
    union = _areas(one) + _areas(other) - shared
    codes = {label: code for code, label in enumerate({item.label for item in (*predicted, *target)})}
    same = np.array([codes[i.label] for i in predicted])[:, None] == np.array([codes[i.label] for i in target])[None]
    return np.where(same & (shared > 0), shared / np.where(union > 0, union, 1.0), 0.0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return sides[..., 0] * sides[..., 1]
