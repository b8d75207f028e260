"""The allowed values of settings, in one table; checked for the command line and for every configuration.

Only single values are checked here; combinations of settings are checked where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

# Names that TRL looks at only when a model is loaded, or after the first rollout.
NAMES: Mapping[str, tuple[object, ...]] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
LARGEST = 2**63 - 1  # of what torch holds as a whole number


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, whole ones where `is_whole`; `also` names single values beside them."""

    low: float
    high: float = math.inf
    is_low_excluded: bool = False
    is_high_excluded: bool = False
    is_whole: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: object) -> bool:
        """Say whether a value is such a number; NaN and infinities are none."""
        if not isinstance(value, int | float) or not _is_number(value) or (self.is_whole and int(value) != value):
            return False
        is_above = self.low < value if self.is_low_excluded else self.low <= value
        is_below = value < self.high if self.is_high_excluded else value <= self.high
        return (is_above and is_below) or value in self.also

    def __str__(self) -> str:
        """Say what is allowed, to stand after "must be"."""
        kind = "a whole number" if self.is_whole else "a finite number"
        low = f"above {self.low:g}" if self.is_low_excluded else f"of at least {self.low:g}"
        high = f" and {'below' if self.is_high_excluded else 'at most'} {self.high:.12g}"
        also = "".join(f", or {value:g}" for value in self.also)
        return f"{kind} {low}{'' if self.high in (math.inf, LARGEST) else high}{also}"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low: int, high: int = LARGEST, also: tuple[float, ...] = ()) -> Interval:
    return Interval(low, high, is_whole=True, also=also)


COUNT, COUNT_OR_NONE = _whole(1), _whole(0)
NOT_NEGATIVE = Interval(0)
POSITIVE = Interval(0, is_low_excluded=True)
SHARE = Interval(0, 1)
BELOW_ONE = Interval(0, 1, is_high_excluded=True)
SOME_SHARE = Interval(0, 1, is_low_excluded=True)

RANGES: Mapping[str, Interval] = {
    "num_generations": _whole(2),  # some algorithms allow 1
    **dict.fromkeys(("seed", "data_seed"), _whole(0, 2**32 - 1)),  # numpy takes no others
    "max_steps": _whole(1, also=(-1,)),
    "num_train_epochs": POSITIVE,
    **dict.fromkeys(
        (
            *("num_iterations", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"),
            *("max_completion_length", "max_prompt_length", "max_pixels", "min_pixels", "max_image_tokens"),
            *("max_tokens_per_forward", "max_turns", "lora_r", "ref_model_sync_steps"),
        ),
        COUNT,
    ),
    **dict.fromkeys(("dynamic_sampling", "dataloader_num_workers", "top_k"), COUNT_OR_NONE),
    **dict.fromkeys(
        ("epsilon", "epsilon_high", "beta", "learning_rate", "weight_decay", "max_grad_norm"), NOT_NEGATIVE
    ),
    **dict.fromkeys(("warmup_steps", "adam_epsilon", "reward_time_limit"), NOT_NEGATIVE),
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps", "delta", "tool_time_limit"), POSITIVE),
    **dict.fromkeys(("temperature", "repetition_penalty", "lora_alpha"), POSITIVE),
    **dict.fromkeys(("top_p", "top_entropy_quantile"), SOME_SHARE),
    **dict.fromkeys(("min_p", "ref_model_mixup_alpha"), SHARE),
    **dict.fromkeys(("val_split_ratio", "lora_dropout", "adam_beta1", "adam_beta2"), BELOW_ONE),
    "val_freq": Interval(0, also=(-1,)),  # 0 and -1 are never
}


def range_problems(values: Mapping[str, Any], min_generations: int = 2) -> list[str]:
    """Return one sentence for each setting whose value is not allowed; None is always left to the library's default."""
    problems = []
    for name, value in values.items():
        allowed = _whole(min_generations) if name == "num_generations" else RANGES.get(name)
        if value is None:
            continue
        if allowed is not None and value not in allowed:
            problems.append(f"--{name} {value}: must be {allowed}")
        elif allowed is None and (number := next(_unusable_numbers(value), None)) is not None:
            what = "a finite number" if isinstance(number, float) else f"at most {LARGEST} and at least -{LARGEST}"
            problems.append(f"--{name} {number}: must be {what}")
    return problems + _name_problems(values)


def _unusable_numbers(value: object) -> Iterator[float]:
    """Yield the numbers, of one value or of a list or mapping, that are not finite or too large for a tensor."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _unusable_numbers(item)
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) > LARGEST):
        yield value


def _name_problems(values: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each name that TRL and transformers would miss only after the model is loaded."""
    known = {**NAMES, **_library_names()}
    problems = [
        f"--{name} {values[name]}: must be one of {', '.join(str(each) for each in allowed if isinstance(each, str))}"
        for name, allowed in known.items()
        if name != "report_to"
        and values.get(name) is not None
        and values[name] not in allowed
        and not (name == "attn_implementation" and "/" in str(values[name]))
    ]
    report_to = values.get("report_to")
    reporters: list[str] = [report_to] if isinstance(report_to, str) else report_to or []
    problems += [
        f"--report_to {name}: must be one of {', '.join(map(str, known['report_to']))}"
        for name in reporters
        if name not in known["report_to"]
    ]
    clip = values.get("reward_clip_range")
    if clip is not None and not _is_range(clip):
        text = clip if isinstance(clip, str) else " ".join(map(str, clip))
        problems.append(f"--reward_clip_range {text}: must be two numbers, the lower one first")
    if values.get("remove_unused_columns") is True:
        problems.append("--remove_unused_columns: must be false, rewards read the columns that the model does not")
    optim_args = values.get("optim_args")
    if optim_args and not all("=" in pair for pair in str(optim_args).split(",")):
        problems.append(f"--optim_args {optim_args}: must be name=value pairs with commas between them")
    return problems


def _is_range(values: object) -> bool:
    """Return whether values are two finite numbers, the lower one first."""
    if not isinstance(values, list | tuple) or len(values) != 2 or not all(map(_is_number, values)):
        return False
    return bool(values[0] < values[1])


@cache
def _library_names() -> Mapping[str, tuple[str, ...]]:
    """Return the names that the installed libraries accept; an attention may also be a Hub kernel, `org/name`."""
    from accelerate.utils import DynamoBackend
    from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return {
        "report_to": ("none", "all", *INTEGRATION_TO_CALLBACK),
        "cache_implementation": tuple(ALL_CACHE_IMPLEMENTATIONS),
        "torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend),
        "torch_compile_mode": ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        "attn_implementation": ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()),
    }
