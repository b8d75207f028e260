"""Determine before training whether a reward applies to a record, without an encoder or a judge."""

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
    "accuracy": "a gold answer that its method can parse",
    "count": "a number as the gold answer",
    "count_partial": "a number as the gold answer",
    **dict.fromkeys(STEP_REWARDS, "the column reference_steps"),
    **dict.fromkeys(("iou", "iou@0.3", "iou@0.5", "iou@0.7", "iou^2", "giou", "center"), "one box as the gold answer"),
    **dict.fromkeys(("detection", "ovd", "od_ap", "od_ap50"), "a list of boxes as the gold answer"),
    "mask_iou": "the column mask",
}


def is_applicable(name: str, record: Record) -> bool:
    """Return whether a built-in reward applies to a record, i.e. does not return None for all of its completions."""
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
    """Describe what a record needs for a reward to apply."""
    return REQUIREMENTS.get(name, "a gold answer")
