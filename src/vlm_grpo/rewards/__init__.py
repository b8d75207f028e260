"""Rewards: pure functions `(completion, record) -> float | None`, listed by name. None means not applicable."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vlm_grpo.answer_parser import completion_text
from vlm_grpo.records import Completion
from vlm_grpo.registry import Registry
from vlm_grpo.rewards.accuracy import accuracy_reward, judge_reward, prepare_accuracy, prepare_judge
from vlm_grpo.rewards.adapter import BatchReward, RewardFn, batch_reward, call_reward, record_from, split_spec
from vlm_grpo.rewards.coco_ap import od_ap_reward
from vlm_grpo.rewards.count import count_reward
from vlm_grpo.rewards.detection import detection_reward, ovd_reward
from vlm_grpo.rewards.format import format_reward
from vlm_grpo.rewards.iou import center_reward, giou_reward, iou_reward
from vlm_grpo.rewards.judge_client import JudgeSettings as JudgeSettings
from vlm_grpo.rewards.length import cosine_length_reward, overlong_reward, repetition_reward
from vlm_grpo.rewards.mask import mask_iou_reward
from vlm_grpo.rewards.reasoning import (
    causal_reward,
    overlap_reward,
    prepare_causal,
    prepare_reasoning,
    reasoning_ordered_reward,
    reasoning_reward,
)
from vlm_grpo.rewards.squad import exact_match_reward, word_f1_reward
from vlm_grpo.rewards.tool_call import tool_call_reward
from vlm_grpo.rewards.user_rewards import load_user_reward
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, time_limit, with_time_limit

REWARDS: Registry[RewardFn] = Registry(
    "reward",
    {
        "format": format_reward,
        "accuracy": accuracy_reward,
        "iou": iou_reward,
        "iou@0.3": partial(iou_reward, above=0.3),
        "iou@0.5": partial(iou_reward, above=0.5),
        "iou@0.7": partial(iou_reward, above=0.7),
        "iou^2": partial(iou_reward, power=2.0),
        "giou": giou_reward,
        "center": center_reward,
        "mask_iou": mask_iou_reward,
        "detection": detection_reward,
        "ovd": ovd_reward,
        "od_ap": od_ap_reward,
        "od_ap50": partial(od_ap_reward, thresholds=(0.5,)),
        "count": count_reward,
        "count_partial": partial(count_reward, is_partial=True),
        "word_f1": word_f1_reward,
        "exact_match": exact_match_reward,
        "tool_call": tool_call_reward,
        "judge": judge_reward,
        "reasoning": reasoning_reward,
        "reasoning_overlap": overlap_reward,
        "reasoning_ordered": reasoning_ordered_reward,
        "causal": causal_reward,
        "length": cosine_length_reward,
        "repetition": repetition_reward,
        "overlong": overlong_reward,
    },
)

# Batch steps of slow rewards: called with all completions and records before they are scored one by one.
PREPARE: Mapping[str, Callable[..., None]] = {
    "accuracy": prepare_accuracy,
    "length": prepare_accuracy,
    "tool_call": prepare_accuracy,
    "judge": prepare_judge,
    "reasoning": prepare_reasoning,
    "reasoning_ordered": prepare_reasoning,
    "causal": prepare_causal,
}

Reward = TypeVar("Reward")  # a function, or the name of a reward model
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.py)")
SLOW_REWARDS = ("judge", "accuracy")  # may wait for worker processes or a server


def score(name: str, completion: Completion, **columns: Any) -> float | None:
    """Return the reward of one completion, a text or TRL's list of messages; None if the reward does not apply.

    `columns` are the record's values (`answer`, `task`, `options`, `reference_steps`, ...), or a `record`.

    Raises:
        KeyError: an unknown name.
    """
    record = columns.get("record") or record_from(columns)
    reward, text = REWARDS[name], completion_text(completion)
    messages = {"messages": completion} if "messages" in inspect.signature(reward).parameters else {}
    return call_reward(name, reward, text, record, **messages)


def make_reward(name: str, **options: object) -> Callable[..., list[float | None]]:
    """Return the reward as a callable for any TRL trainer, `reward(prompts, completions, **columns)`.

    Resources of the reward, such as an encoder, are loaded here, so that errors occur before the first rollout.

    Raises:
        KeyError: the name is unknown.
        TypeError: the reward has no such option.
        ImportError: a package of an extra is missing.
    """
    reward = REWARDS[name]
    option_names = [
        key for key, value in inspect.signature(reward).parameters.items() if value.kind is value.KEYWORD_ONLY
    ]
    for option in options:
        if option not in option_names:
            raise TypeError(f"reward {name!r} has no option {option!r}; it has {', '.join(option_names) or 'none'}")
    prepare = PREPARE.get(name)
    if prepare is not None:
        prepare(
            [], [], **{key: value for key, value in options.items() if key in inspect.signature(prepare).parameters}
        )
    return batch_reward(name, reward, prepare=prepare, **options)


def has_option(spec: str, option: str) -> bool:
    """Return whether a built-in reward, `NAME[:WEIGHT]`, has an option of this name."""
    name = split_spec(spec)[0]
    return name in REWARDS and option in inspect.signature(REWARDS[name]).parameters


def make_concurrent(functions: Sequence[Reward]) -> list[Reward]:
    """Return the rewards for a TRL trainer, with slow ones replaced by coroutine functions if there are several.

    TRL calls plain functions one after the other but awaits coroutines concurrently, so that a judge and math-verify
    take only as long as the slower of them.
    """
    slow = [function for function in functions if getattr(function, "__name__", "") in SLOW_REWARDS]
    if len(slow) < 2:
        return list(functions)
    return [getattr(function, "asynchronous", function) if function in slow else function for function in functions]


def resolve_rewards(specs: list[str], **options: object) -> tuple[list[BatchReward], list[float]]:
    """Return callables and weights for `NAME[:WEIGHT]` and `path/to/file.py:function[:WEIGHT]`.

    Each option that is not None (`max_length`, `encoder`, ...) is passed to the rewards that have it.

    Raises:
        KeyError: a name is unknown.
        ValueError: a weight is not a number, or a file or function does not exist.
    """
    set_options = {name: value for name, value in options.items() if value is not None}
    pairs = [split_spec(spec) for spec in specs]
    return [_resolve(name, set_options) for name, _ in pairs], [weight for _, weight in pairs]


def is_reward_model(spec: str) -> bool:
    """Return whether `NAME[:WEIGHT]` is a reward model that TRL loads: a folder, or `org/name` on the Hub."""
    name = split_spec(spec)[0]
    return name not in REWARDS and (Path(name).is_dir() or HUB_NAME.fullmatch(name) is not None)


def _resolve(name: str, options: Mapping[str, Any]) -> BatchReward:
    if ".py:" in name:
        seconds = options.get("time_limit", DEFAULT_TIME_LIMIT)
        with time_limit(lambda: f"reward {name!r}: importing its file", seconds):
            function = load_user_reward(name)
        return with_time_limit(function, seconds)
    parameters = inspect.signature(REWARDS[name]).parameters
    return make_reward(name, **{option: value for option, value in options.items() if option in parameters})
