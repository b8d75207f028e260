"""Rewards for a list of labelled boxes by the best one-to-one matching with the true ones; how such lists are read.

Two forms are read, in any mixture: `{"bbox_2d": [x1, y1, x2, y2], "label": "dog"}`, in the space in which the model's
family answers, and `{"Position": [x1, y1, x2, y2], "Confidence": 0.9}`, always 0 to 1000 of each side. Both may carry
`label` and `Confidence`. "None" or an empty list says that nothing is there. COCO's average precision is in coco_ap.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from vlm_grpo.answer_parser import extract_json, ground_truth_text, parse_answer, python_literal
from vlm_grpo.boxes import Box
from vlm_grpo.records import Record
from vlm_grpo.rewards.iou import in_answer_space
from vlm_grpo.rewards.mcq import normalise

ABOVE = 0.5  # IoU from which on a box is the true one


def matched(lists: Lists, above: float = ABOVE) -> np.ndarray:
    """The IoU of each given box with the true box that it is matched with, (given,); 0 for none.

    One to one, labels equal, IoU of at least `above`, and the sum as large as it can be (Hungarian matching).
    """
    values = overlaps(lists.given, lists.right)
    values[values < above] = 0.0
    found = np.zeros(len(lists.given))
    if values.any():
        from scipy.optimize import linear_sum_assignment  # 0.3 s, only where boxes are matched

        rows, columns = linear_sum_assignment(values, maximize=True)
        found[rows] = values[rows, columns]
    return found


def detection_reward(completion: str, record: Record, *, above: float = ABOVE) -> float | None:
    """Boxes matched by label at IoU >= `above`: sum of their IoU / max(true, given); None when the truth is no list.

    Surplus boxes, duplicates, invented labels and entries that cannot be read make `given` larger. "None" (or an empty
    list) is worth 1 where nothing is there and 0 elsewhere; an answer that is no list is worth 0.
    """
    lists = detection_pair(completion, record)
    return None if lists is None else credit(lists, above)


def credit(lists: Lists, above: float = ABOVE) -> float:
    """The sum of matched IoU over the longer list, 0 to 1; 1 for two empty ones."""
    if lists.given is None:
        return 0.0
    longer = max(len(lists.given), len(lists.right))
    return float(matched(lists, above).sum()) / longer if longer else 1.0


def ovd_reward(completion: str, record: Record, *, above: float = ABOVE) -> float | None:
    """Half `detection`, half calibrated confidence, -0.5 to 1; None when the truth is no list.

    The second half is the sum of 2ch - c^2 over the given boxes / max(true, given), where c is the confidence and h is
    1 for a matched box, else 0. It is the Brier score moved so that a box which its writer gives no chance adds nothing
    (2ch - c^2 = h^2 - (c - h)^2): whoever believes that a box is right with probability p earns p^2 with c = p and less
    with any other c, so that neither "always 1" nor many boxes of confidence 0 pay. A sure invention costs; a box
    without a confidence is one of confidence 0. Two empty lists are worth 1.
    """
    lists = detection_pair(completion, record)
    if lists is None:
        return None
    if not lists.given:
        return credit(lists, above)
    found = matched(lists, above)
    sure = np.array([item.confidence if item.has_confidence else 0.0 for item in lists.given])
    calibrated = 2 * sure * (found > 0) - sure**2
    return float((found + calibrated).sum()) / (2 * max(len(lists.given), len(lists.right)))


def detection(answer: str, truth: str, record: Record) -> float | None:
    """The `detection` reward: matched IoU over the longer list."""
    lists = compared(answer, truth, record)
    return None if lists is None else credit(lists)


def weighted_sum(answer: str, truth: str, record: Record) -> float | None:
    """0.7 of `detection`, and 0.3 for neither missing nor inventing boxes: 1 - (share missed + share surplus) / 2."""
    lists = compared(answer, truth, record)
    if lists is None or not lists.given or not lists.right:
        return None if lists is None else credit(lists)
    hits = int((matched(lists) > 0).sum())
    complete = (hits / len(lists.right) + hits / len(lists.given)) / 2
    return 0.7 * credit(lists) + 0.3 * complete


FARTHEST = 1e12  # a coordinate beyond it is none, and its area could become infinite
NOTHING = ("none", "no objects", "no object", "no objects found", "nothing")  # said by data sets
UNREADABLE = "\0"  # the label of an entry that is no detection; no truth has it


class Detection(NamedTuple):
    """One entry of a list: the label normalised, empty without one; confidence 1 where none was written."""

    box: Box
    label: str
    confidence: float = 1.0
    has_confidence: bool = False
    is_thousand: bool = False


class Lists(NamedTuple):
    """What an answer says is there (None when it cannot be read) and what is; boxes in one space, in a fixed order."""

    given: list[Detection] | None
    right: list[Detection]


def detection_pair(completion: str, record: Record) -> Lists | None:
    """What a completion says is there and what is; None when the true answer is no list of boxes."""
    if record.answer is None:
        return None
    return compared(parse_answer(completion, record.task) or "", ground_truth_text(record.answer), record)


def compared(answer: str, truth: str, record: Record) -> Lists | None:
    """The lists that an answer and the truth are, ready to be compared; None when the truth is no list of boxes."""
    right = true_detections(truth)
    if right is None:
        return None
    given = read_detections(answer)
    placed = sorted(_in_answer_space(item, record, is_truth=True) for item in right)
    if given is None:
        return Lists(None, placed)
    return Lists(sorted((_in_answer_space(item, record) for item in _labelled(given, right)), key=_order), placed)


def read_detections(text: str) -> list[Detection] | None:
    """The entries of a list in the order of the text, one for each, readable or not; None when it is no list."""
    if text.strip().rstrip(".").lower() == "none":
        return []
    value = extract_json(text)
    if isinstance(value, dict) or _box_of(value) is not None:
        value = [value]
    return [_detection(item) for item in value] if isinstance(value, list) else None


@lru_cache(maxsize=4096)
def true_detections(text: str) -> list[Detection] | None:
    """The entries of a true answer; None when it is no list, or one of them cannot be read.

    What data sets write is read more freely than what models do: Python's spelling of a list, "No objects".
    """
    value = python_literal(text)
    found = [] if normalise(text) in NOTHING else read_detections(text if value is text else json.dumps(value))
    return None if found is None or any(item.label == UNREADABLE for item in found) else found


def _detection(item: Any) -> Detection:
    """The entry as a detection; one of area zero that matches nothing where it cannot be read."""
    if isinstance(item, list):
        item = {"bbox_2d": item}
    if isinstance(item, dict) and ("bbox_2d" in item) != ("Position" in item):
        is_thousand = "Position" in item
        box = _box_of(item["Position" if is_thousand else "bbox_2d"])
        label, confidence = item.get("label", ""), item.get("Confidence", item.get("confidence"))
        if box is not None and isinstance(label, str) and (confidence is None or _is_share(confidence)):
            has_confidence = confidence is not None
            share = float(confidence) if has_confidence else 1.0
            name = normalise(label) or label.strip().lower()  # an article alone is a name all the same
            return Detection(box, name, share, has_confidence, is_thousand)
    return Detection(Box(0.0, 0.0, 0.0, 0.0), UNREADABLE)


def _box_of(value: Any) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(number) in (int, float) and abs(number) <= FARTHEST for number in value):
        return None
    return Box(*(max(0.0, float(number)) for number in value))


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _labelled(given: Sequence[Detection], right: Sequence[Detection]) -> list[Detection]:
    """The given entries with the truth's label where it has only one and they have none, or where it has none."""
    labels = {item.label for item in right}
    if len(labels) != 1:
        return list(given)
    (only,) = labels
    return [
        item._replace(label=only) if item.label != UNREADABLE and (not item.label or not only) else item
        for item in given
    ]


def _in_answer_space(item: Detection, record: Record, is_truth: bool = False) -> Detection:
    if not (is_truth or item.is_thousand):
        return item
    return item._replace(box=in_answer_space(item.box, record, "thousand" if item.is_thousand else None))


def _order(item: Detection) -> tuple[Any, ...]:
    """By label, then the surest first, so that the order in which a list was written never counts."""
    return item.label, -item.confidence, item.has_confidence, item.box


def overlaps(given: Sequence[Detection], right: Sequence[Detection]) -> np.ndarray:
    """IoU of each given with each true box, (given, right); 0 where labels differ or a box has no area."""
    if not given or not right:
        return np.zeros((len(given), len(right)))
    one = np.array([item.box for item in given])[:, None]  # (given, 1, 4)
    other = np.array([item.box for item in right])[None]  # (1, right, 4)
    shared = np.clip(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0, None)
    shared = shared[..., 0] * shared[..., 1]
    union = _areas(one) + _areas(other) - shared
    codes = {label: code for code, label in enumerate({item.label for item in (*given, *right)})}
    same = np.array([codes[i.label] for i in given])[:, None] == np.array([codes[i.label] for i in right])[None]
    return np.where(same & (shared > 0), shared / np.where(union > 0, union, 1.0), 0.0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return sides[..., 0] * sides[..., 1]
