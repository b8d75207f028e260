"""Rewards for a list of boxes by a best one-to-one matching with the true ones. COCO's precision is in precision.py."""

from __future__ import annotations

import numpy as np

from vlm_grpo.records import Record
from vlm_grpo.rewards.detections import Lists, compared, detection_pair, overlaps

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
