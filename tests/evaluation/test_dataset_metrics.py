from __future__ import annotations

import json

import numpy as np
import pytest

from vlm_grpo.evaluation.aggregate import collect_evidence, summarize
from vlm_grpo.evaluation.dataset_metrics import detection_evidence, mask_evidence
from vlm_grpo.masks import encode_mask, write_rle
from vlm_grpo.records import Record
from vlm_grpo.rewards import score


def masked(left: int, right: int) -> np.ndarray:
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:80, left:right] = True
    return mask


def answered(value: object) -> str:
    return f"<think>a</think><answer>{json.dumps(value)}</answer>"


def test_mask_evidence_counts_pixels():
    """True: 60 x 60 pixels. Answer: the same moved by 20 of 60 columns, so 60 x 40 shared and 60 x 80 covered."""
    record = Record(1, "", None, task="seg", extra={"mask": write_rle(masked(40, 100)), "box_space": "thousand"})
    completion = answered(encode_mask(masked(60, 120), codec="polygon"))
    assert mask_evidence(completion, record) == [2400, 4800]
    assert score("mask_iou", completion, record=record) == pytest.approx(0.5)
    assert mask_evidence("<answer>no mask</answer>", record) == [0, 3600]
    assert mask_evidence(completion, Record(1, "", None, task="seg")) is None


def test_detection_evidence_has_both_lists_in_one_space():
    extra = {"image_sizes": [(200, 100)], "processed_sizes": [None], "answer_space": "thousand"}
    record = Record(1, "", [{"bbox_2d": [20, 10, 100, 50], "label": "Cup"}], task="ovd", extra=extra)
    completion = answered([{"Position": [100, 100, 500, 500], "Confidence": 0.8, "label": "cup"}, {"Position": "x"}])
    found = detection_evidence(completion, record)
    assert found == {
        "truth": [["cup", 100.0, 100.0, 500.0, 500.0]],
        "found": [["cup", 0.8, 100.0, 100.0, 500.0, 500.0]],
    }
    assert detection_evidence("nothing", record) == {"truth": found["truth"], "found": []}
    assert detection_evidence(completion, Record(1, "", "7", task="ovd")) is None


def test_precision_over_a_data_set_of_answers():
    """Two images, one box each; one found: at every IoU recall 1/2 with precision 1, so 51 of 101 recalls."""
    right = [{"Position": [100, 100, 300, 300], "Confidence": 0.8}]
    record = Record(1, "", json.dumps([{"Position": [100, 100, 300, 300]}]), task="ovd")
    predictions = [
        {"scores": {}, "evidence": {"boxes": [collect_evidence(["boxes"], text, record)["boxes"]]}}
        for text in (answered(right), "<think>a</think><answer>None</answer>")
    ]
    found = summarize(predictions, ["mAP", "AP50"])
    assert found["mAP"].value == found["AP50"].value == pytest.approx(51 / 101)
    # Draws are 0, 51/101, 51/101 or 1 in equal parts, so that their mean is the value but for chance.
    assert (found["mAP"].low, found["mAP"].high) == pytest.approx((0.0, 1.0), abs=0.05)
