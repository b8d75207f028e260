"""Whether a reward applies to a record, decided before training. Loads no encoder and asks no server."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_grpo.answer_parser import ground_truth_text
from vlm_grpo.records import Record
from vlm_grpo.rewards import REWARDS
from vlm_grpo.rewards.accuracy import JUDGE_METHODS, METHODS, method_of

# Rewards of a completion's format: they apply to every record, and none of them measures correctness.
FORMAT_REWARDS = ("format", "repetition", "overlong")
ANSWER_REWARDS = ("accuracy", "judge", "length")
STEP_REWARDS = ("reasoning", "reasoning_overlap", "reasoning_ordered", "causal")
REQUIREMENTS: Mapping[str, str] = {
    "accuracy": "a true answer that its method can read",
    "count": "a number as the true answer",
    "count_partial": "a number as the true answer",
    **dict.fromkeys(STEP_REWARDS, "the column reference_steps"),
    **dict.fromkeys(("iou", "iou@0.3", "iou@0.5", "iou@0.7", "iou^2", "giou", "center"), "one box as the true answer"),
    **dict.fromkeys(("detection", "ovd", "od_ap", "od_ap50"), "a list of boxes as the true answer"),
    "mask_iou": "the column mask",
}


def is_applicable(name: str, record: Record) -> bool:
    """Return whether a reward of the table gives completions of a record a number; without one it is None for all."""
    if name in FORMAT_REWARDS:
        return True
    if record.answer is None:
        return False
    if name in STEP_REWARDS:
        return bool(record.reference_steps)
    if name in ANSWER_REWARDS:
        method = "judge" if name == "judge" else method_of(record)
        truth = ground_truth_text(record.answer)
        return method in (*JUDGE_METHODS, "math") or METHODS[method](truth, truth, record) is not None
    return REWARDS[name]("<answer>-</answer>", record) is not None


def requirement(name: str) -> str:
    """Return what a record must have for a reward, in a few words."""
    return REQUIREMENTS.get(name, "a true answer")
