"""Whether a reward applies to a record, found out before any completion exists. Loads no encoder and asks no server."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_grpo.answer_parser import ground_truth_text
from vlm_grpo.records import Record
from vlm_grpo.rewards import REWARDS
from vlm_grpo.rewards.accuracy import JUDGED, METHODS, method_of

# Rewards of how a completion is written: they apply to every record, and none of them says what is right.
OF_FORM = ("format", "repetition", "overlong")
OF_ANSWER = ("accuracy", "judge", "length")
OF_STEPS = ("reasoning", "reasoning_overlap", "reasoning_ordered", "causal")
NEEDED: Mapping[str, str] = {
    "accuracy": "a true answer that its method can read",
    "count": "a number as the true answer",
    "count_partial": "a number as the true answer",
    **dict.fromkeys(OF_STEPS, "the column reference_steps"),
    **dict.fromkeys(("iou", "iou@0.3", "iou@0.5", "iou@0.7", "iou^2", "giou", "center"), "one box as the true answer"),
    **dict.fromkeys(("detection", "ovd", "od_ap", "od_ap50"), "a list of boxes as the true answer"),
    "mask_iou": "the column mask",
}


def applies(name: str, record: Record) -> bool:
    """Return whether a reward of the table gives completions of a record a number; without one it is None for all."""
    if name in OF_FORM:
        return True
    if record.answer is None:
        return False
    if name in OF_STEPS:
        return bool(record.reference_steps)
    if name in OF_ANSWER:
        method = "judge" if name == "judge" else method_of(record)
        truth = ground_truth_text(record.answer)
        return method in (*JUDGED, "math") or METHODS[method](truth, truth, record) is not None
    return REWARDS[name]("<answer>-</answer>", record) is not None


def needed(name: str) -> str:
    """Return what a record must have for a reward, in a few words."""
    return NEEDED.get(name, "a true answer")
