"""Check that a rollout consists of whole groups, and suggest valid batch sizes. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from vlm_grpo.cli.args import FlagValues

BATCH, STEPS, ACCUMULATION = "per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps"
WHOLE, GROUP = "generation_batch_size", "num_generations"
SEARCHED = 4096  # number of values of a flag to try


def validate_batch_sizes(
    values: FlagValues, given: Collection[str], algorithm: str | None, min_generations: int = 2
) -> list[str]:
    """Return one sentence if a rollout does not consist of whole groups, with the nearest valid values.

    Args:
        values: values of all flags.
        given: flags set by the user.
        algorithm: name of the algorithm, which may set `steps_per_generation`.
        min_generations: minimum number of completions per prompt.
    """
    group, batch, generation_batch = values.get(GROUP), values.get(BATCH), values.get(WHOLE)
    if group is None or batch is None:
        return [f"--{name} none: must be a whole number" for name in (GROUP, BATCH) if values.get(name) is None]
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    steps = STEPS if values.get(STEPS) is not None else ACCUMULATION
    if generation_batch is not None:
        if values.get(STEPS) is not None:
            return []
        return _validate_generation_batch(generation_batch, group, batch, processes)
    size = batch * values[steps] * processes
    if size % group == 0:
        return []
    factors = " x ".join(
        [_flag_text(BATCH, values, given, None), _flag_text(steps, values, given, algorithm), _process_count(processes)]
    )
    suggestions = [f"--{BATCH} {_join_or(_nearest(batch, lambda n: n * values[steps] * processes % group == 0))}"]
    if steps in given or steps == ACCUMULATION:
        fitting = _nearest(values[steps], lambda n: batch * n * processes % group == 0)
        suggestions.append(f"--{steps} {_join_or(fitting)}")
    return [_problem(f"{factors} = {size}", size, values, given, suggestions, min_generations)]


def _problem(
    product: str,
    size: int,
    values: FlagValues,
    given: Collection[str],
    suggestions: list[str],
    min_generations: int,
) -> str:
    divisors = _nearest(values[GROUP], lambda n: n >= min_generations and size % n == 0, most=size)
    suggestions += [f"--{GROUP} {_join_or(divisors)}"] if divisors else []
    group = _flag_text(GROUP, values, given, None)
    near = ", or ".join(suggestions)
    return f"the completions of a rollout must form whole groups of {group}, got {product}; nearest valid: {near}"


def _validate_generation_batch(generation_batch: int, group: int, batch: int, processes: int) -> list[str]:
    each = batch * processes
    if generation_batch % each == 0 and generation_batch % group == 0:
        return []
    near = _nearest(generation_batch, lambda n: n % each == 0 and n % group == 0)
    factors = f"--{BATCH} {batch} x {_process_count(processes)} = {each}"
    return [
        f"--{WHOLE} {generation_batch}: must be a multiple of {factors} and of --{GROUP} {group}; nearest valid: "
        f"{_join_or(near)}"
    ]


def _nearest(value: int, fits: Callable[[int], bool], most: int = SEARCHED) -> list[int]:
    """Return the nearest valid values below and above."""
    below = next((n for n in range(min(value - 1, most), 0, -1) if fits(n)), None)
    above = next((n for n in range(value + 1, max(most, value) + SEARCHED) if fits(n)), None)
    return [n for n in (below, above) if n is not None]


def _join_or(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers)) or "none"


def _process_count(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _flag_text(name: str, values: FlagValues, given: Collection[str], algorithm: str | None) -> str:
    source = "" if name in given else f" (of --algorithm {algorithm})" if algorithm and name == STEPS else " (default)"
    return f"--{name} {values[name]}{source}"
