"""Rewards for a list of labelled boxes, by optimal one-to-one matching with the target boxes; the parser of such lists.

Two formats are accepted, also mixed: `{"bbox_2d": [x1, y1, x2, y2], "label": "dog"}`, in the coordinate space of the
model family, and `{"Position": [x1, y1, x2, y2], "Confidence": 0.9}`, always 0 to 1000 per side. Both may have `label`
and `Confidence`. "None" or an empty list means that there is no object. COCO's average precision is in coco_ap.py.
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

IOU_THRESHOLD = 0.5  # minimum IoU of a match


def matched_ious(pair: DetectionPair, above: float = IOU_THRESHOLD) -> np.ndarray:
    """Return the IoU of each predicted box with its matched target box, (predicted,); 0 without a match.

    Matches are one to one, with equal labels and an IoU of at least `above`, and maximize the sum (Hungarian matching).
    """
    predicted = pair.predicted or []
    values = iou_matrix(predicted, pair.target)
    values[values < above] = 0.0
    ious = np.zeros(len(predicted))
    if values.any():
        from scipy.optimize import linear_sum_assignment  # takes 0.3 s: imported only if there are boxes to match

        rows, columns = linear_sum_assignment(values, maximize=True)
        ious[rows] = values[rows, columns]
    return ious


def detection_reward(completion: str, record: Record, *, above: float = IOU_THRESHOLD) -> float | None:
    """Return the sum of the IoUs of matched boxes / max(targets, predictions); None if the gold answer is not a list.

    Boxes match if their labels are equal and their IoU is at least `above`. Surplus boxes, duplicates, wrong labels and
    unparsable entries all count as predictions. "None" or an empty list scores 1 if there is no object and 0 otherwise;
    an answer that is not a list scores 0.
    """
    pair = detection_pair(completion, record)
    return None if pair is None else matched_iou_score(pair, above)


def matched_iou_score(pair: DetectionPair, above: float = IOU_THRESHOLD) -> float:
    """Return the summed IoU of matched boxes divided by the longer list's length, 0 to 1; 1 for two empty lists."""
    if pair.predicted is None:
        return 0.0
    longer = max(len(pair.predicted), len(pair.target))
    return float(matched_ious(pair, above).sum()) / longer if longer else 1.0


def ovd_reward(completion: str, record: Record, *, above: float = IOU_THRESHOLD) -> float | None:
    """Return the mean of `detection` and a calibration score, -0.5 to 1; None if the gold answer is not a list.

    The calibration score is the sum of 2ch - c^2 over the predicted boxes / max(targets, predictions), where c is the
    confidence and h is 1 for a matched box, else 0. It is a Brier score shifted such that a box of confidence 0 adds
    nothing (2ch - c^2 = h^2 - (c - h)^2). A box that is correct with probability p has the expected score p^2 for c = p
    and less for any other c, so neither "always 1" nor many boxes of confidence 0 pay off. Confident false positives
    are penalized; a box without a confidence counts as confidence 0. Two empty lists score 1.
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
    """The `detection` reward: summed IoU of matched boxes divided by the longer list's length."""
    pair = pair_detections(answer, truth, record)
    return None if pair is None else matched_iou_score(pair)


def weighted_sum(answer: str, truth: str, record: Record) -> float | None:
    """0.7 * `detection` + 0.3 * (1 - (fraction of target boxes missed + fraction of predictions unmatched) / 2)."""
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
    """Return the boxes of a completion and of its record; None if the gold answer is not a list of boxes."""
    if record.answer is None:
        return None
    return pair_detections(parse_answer(completion, record.task) or "", ground_truth_text(record.answer), record)


def pair_detections(answer: str, truth: str, record: Record) -> DetectionPair | None:
    """Return predicted and target boxes in one coordinate space; None if the gold answer is not a list of boxes."""
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
    """Return the entries of a list in the order of the text, parsable or not; None if the text is not a list."""
    if text.strip().rstrip(".").lower() == "none":
        return []
    value = extract_json(text)
    if isinstance(value, dict) or _parse_box(value) is not None:
        value = [value]
    return [_parse_detection(item) for item in value] if isinstance(value, list) else None


@lru_cache(maxsize=4096)
def parse_target_detections(text: str) -> list[Detection] | None:
    """Return the entries of a gold answer; None if it is not a list or an entry cannot be parsed.

    Gold answers are parsed more leniently than completions: Python literals and "No objects" are accepted.
    """
    value = python_literal(text)
    detections = (
        []
        if normalize_text(text) in EMPTY_LIST_TEXTS
        else parse_detections(text if value is text else json.dumps(value))
    )
    return None if detections is None or any(item.label == UNREADABLE for item in detections) else detections


def _parse_detection(item: object) -> Detection:
    """Return the entry as a detection; if it cannot be parsed, a box of area zero, which matches nothing."""
    if isinstance(item, list):
        item = {"bbox_2d": item}
    if isinstance(item, dict) and ("bbox_2d" in item) != ("Position" in item):
        is_thousand = "Position" in item
        box = _parse_box(item["Position" if is_thousand else "bbox_2d"])
        label, confidence = item.get("label", ""), item.get("Confidence", item.get("confidence"))
        if box is not None and isinstance(label, str) and (confidence is None or _is_probability(confidence)):
            has_confidence = confidence is not None
            share = 1.0 if confidence is None else float(confidence)
            name = normalize_text(label) or label.strip().lower()  # a label may be an article alone, such as "A"
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
    """Return the predictions with the only target label filled in, if they or the targets have no label."""
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
    """Return a key that sorts by label, then by decreasing confidence, so that the order of a list does not matter."""
    return item.label, -item.confidence, item.has_confidence, item.box


def iou_matrix(predicted: Sequence[Detection], target: Sequence[Detection]) -> np.ndarray:
    """Return the IoU of all pairs, (predicted, target); 0 for different labels and boxes without area."""
    if not predicted or not target:
        return np.zeros((len(predicted), len(target)))
    one = np.array([item.box for item in predicted])[:, None]  # (predicted, 1, 4)
    other = np.array([item.box for item in target])[None]  # (1, target, 4)
    shared = np.clip(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0, None)
    shared = shared[..., 0] * shared[..., 1]
    union = _areas(one) + _areas(other) - shared
    codes = {label: code for code, label in enumerate({item.label for item in (*predicted, *target)})}
    same = np.array([codes[i.label] for i in predicted])[:, None] == np.array([codes[i.label] for i in target])[None]
    return np.where(same & (shared > 0), shared / np.where(union > 0, union, 1.0), 0.0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return sides[..., 0] * sides[..., 1]
