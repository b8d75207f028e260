"""Metrics of a whole dataset that are not means of rewards: cIoU, mAP. No torch.

Each extracts evidence from every completion (a few JSON-compatible numbers) and computes its value from the evidence of
all examples with weights: 1 for the metric itself, bootstrap counts for its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vlm_grpo.answer_parser import extract_answer
from vlm_grpo.evaluation.mean_ap import average_precision, match_labels
from vlm_grpo.masks import decode_regions
from vlm_grpo.masks.raster import regions_to_mask
from vlm_grpo.records import Record
from vlm_grpo.rewards.detection import detection_pair
from vlm_grpo.rewards.mask import answer_extent, expected_terms, target_mask

Value = Callable[[np.ndarray], "float | None"]
# Results of `DatasetMetric.prepare`, shared by metrics with the same evidence.
PreparedEvidence = dict[Callable[[Sequence[Any]], Any], list[Any]]


@dataclass(frozen=True)
class DatasetMetric:
    """`value(prepare(evidence of all examples), weights (N,))` is the metric; `evidence` is a name in EVIDENCE.

    `resamples` is the number of bootstrap draws of its interval.
    """

    evidence: str
    prepare: Callable[[Sequence[Any]], Any]
    value: Callable[[Any, np.ndarray], float | None]
    resamples: int = 2000


def mask_evidence(completion: str, record: Record) -> list[int] | None:
    """Return the pixels of intersection and union with the target mask; None if the record has no mask.

    For an invalid answer, the intersection is empty and the union is the target mask.
    """
    pair = mask_pair(extract_answer(completion), record)
    if pair is None:
        return None
    predicted, target = pair
    if predicted is None:
        return [0, int(target.sum())]
    return [int((predicted & target).sum()), int((predicted | target).sum())]


def mask_pair(answer: str | None, record: Record) -> tuple[np.ndarray | None, np.ndarray] | None:
    """Return the masks of an answer and of the record, bool (H, W), parsed as in the reward `mask_iou`.

    None if the record has no mask; the first is None for an invalid answer.
    """
    truth = target_mask(record.extra.get("mask"))
    if truth is None:
        return None
    size = (truth.height, truth.width)
    regions = answer and decode_regions(answer, *size, answer_extent(record, truth), expected_terms(record))
    return regions_to_mask(regions, *size) if regions else None, regions_to_mask([truth.boundaries], *size)


def detection_evidence(completion: str, record: Record) -> dict[str, list[list[object]]] | None:
    """Return target and predicted boxes with labels, in the space of the answer; None without a gold list."""
    pair = detection_pair(completion, record)
    if pair is None:
        return None
    return {
        "truth": [[item.label, *item.box] for item in pair.target],
        "found": [[item.label, item.confidence, *item.box] for item in pair.predicted or () if item.box.area],
    }


def pixel_table(evidence: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the pixels of intersection and union of every example, (N, 2)."""
    return np.asarray(evidence, dtype=float).reshape(-1, 2)


def mean_iou(pixels: np.ndarray, weights: np.ndarray) -> float | None:
    """Return gIoU (arXiv:2308.00692), the mean IoU of the masks; an empty mask that should be empty has IoU 1."""
    each = np.divide(pixels[:, 0], pixels[:, 1], out=np.ones(len(pixels)), where=pixels[:, 1] > 0)
    return float(weights @ each / weights.sum()) if weights.sum() else None


def cumulative_iou(pixels: np.ndarray, weights: np.ndarray) -> float | None:
    """Return cIoU (arXiv:2308.00692), all intersections over all unions in pixels, which large masks dominate."""
    shared, covered = weights @ pixels
    return float(shared / covered) if covered else None


EVIDENCE: Mapping[str, Callable[[str, Record], object]] = {"mask": mask_evidence, "boxes": detection_evidence}

AP50 = partial(average_precision, ious=slice(0, 1))
DATASET_METRICS: Mapping[str, DatasetMetric] = {
    "gIoU": DatasetMetric("mask", pixel_table, mean_iou),
    "cIoU": DatasetMetric("mask", pixel_table, cumulative_iou),
    "mAP": DatasetMetric("boxes", match_labels, average_precision, resamples=300),
    "AP50": DatasetMetric("boxes", match_labels, AP50, resamples=300),
}

# Metrics per task, the main one first; other tasks have only their `metric`.
TASK_METRICS: Mapping[str, tuple[str, ...]] = {
    "rec": ("iou@0.5", "iou@0.3", "iou@0.7", "iou"),
    "grounding": ("iou@0.5", "iou@0.3", "iou@0.7", "iou"),
    "seg": ("gIoU", "cIoU"),
    "ovd": ("mAP", "AP50"),
    "vqa": ("accuracy", "reasoning"),
}


def dataset_metric(name: str, evidence: Sequence[Sequence[object]], prepared: PreparedEvidence | None = None) -> Value:
    """Return a dataset metric as a function of the examples' weights (N,); examples may have several completions.

    Args:
        evidence: per example, the evidence of every completion (never None); the value is the mean over first, second,
            ... completions.
        prepared: cache of prepared evidence, shared by metrics with the same evidence.
    """
    entry = DATASET_METRICS[name]
    shared = {} if prepared is None else prepared
    if entry.prepare not in shared:
        shared[entry.prepare] = [entry.prepare(column) for column in zip(*evidence, strict=True)]
    columns = shared[entry.prepare]

    def value(weights: np.ndarray) -> float | None:
        parts = [entry.value(column, weights) for column in columns]
        values = [part for part in parts if part is not None]
        return float(np.mean(values)) if values else None

    return value
