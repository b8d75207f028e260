"""Whether the completions of a step are whole groups, and which batch sizes would make them so. No torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

BATCH, STEPS, ACCUMULATION = "per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps"
WHOLE, GROUP = "generation_batch_size", "num_generations"
SEARCHED = 4096  # values of a flag that are tried


def batch_problems(
    values: Mapping[str, Any], given: Collection[str], algorithm: str | None, fewest: int = 2
) -> list[str]:
    """Return one sentence where the completions of a rollout are no whole groups, with the nearest values that fit.

    Args:
        values: of all flags.
        given: the flags that the user set.
        algorithm: which may set `steps_per_generation`.
        fewest: completions of a prompt.
    """
    group, batch, whole = values.get(GROUP), values.get(BATCH), values.get(WHOLE)
    if group is None or batch is None:
        return [f"--{name} none: must be a whole number" for name in (GROUP, BATCH) if values.get(name) is None]
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    steps = STEPS if values.get(STEPS) is not None else ACCUMULATION
    if whole is not None:
        return [] if values.get(STEPS) is not None else _whole_problems(whole, group, batch, processes, fewest)
    size = batch * values[steps] * processes
    if size % group == 0:
        return []
    factors = " x ".join(
        [_shown(BATCH, values, given, None), _shown(steps, values, given, algorithm), _counted(processes)]
    )
    fits = [f"--{BATCH} {_either(_near(batch, lambda n: n * values[steps] * processes % group == 0))}"]
    if steps in given or steps == ACCUMULATION:
        fits.append(f"--{steps} {_either(_near(values[steps], lambda n: batch * n * processes % group == 0))}")
    return [_problem(f"{factors} = {size}", size, values, given, fits, fewest)]


def _problem(
    product: str, size: int, values: Mapping[str, Any], given: Collection[str], fits: list[str], fewest: int
) -> str:
    divisors = _near(values[GROUP], lambda n: n >= fewest and size % n == 0, most=size)
    fits += [f"--{GROUP} {_either(divisors)}"] if divisors else []
    group = _shown(GROUP, values, given, None)
    near = ", or ".join(fits)
    return f"the completions of a rollout must be whole groups of {group}, got {product}; nearest that fit: {near}"


def _whole_problems(whole: int, group: int, batch: int, processes: int, fewest: int) -> list[str]:
    each = batch * processes
    if whole % each == 0 and whole % group == 0:
        return []
    near = _near(whole, lambda n: n % each == 0 and n % group == 0)
    return [
        f"--{WHOLE} {whole}: must be a multiple of --{BATCH} {batch} x {_counted(processes)} = {each} and of --{GROUP} "
        f"{group}; nearest that fit: {_either(near)}"
    ]


def _near(value: int, fits: Any, most: int = SEARCHED) -> list[int]:
    """Return the nearest values that fit, the one below and the one above."""
    below = next((n for n in range(min(value - 1, most), 0, -1) if fits(n)), None)
    above = next((n for n in range(value + 1, max(most, value) + SEARCHED) if fits(n)), None)
    return [n for n in (below, above) if n is not None]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers)) or "none"


def _counted(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _shown(name: str, values: Mapping[str, Any], given: Collection[str], algorithm: str | None) -> str:
    source = "" if name in given else f" (of --algorithm {algorithm})" if algorithm and name == STEPS else " (default)"
    return f"--{name} {values[name]}{source}"
