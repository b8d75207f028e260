"""What the benchmarks of a step, of decoding and of learning measured, as text. Needs no torch.

Every function takes the dictionary that its benchmark writes, also of a run that was cut off.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

NOT_MEASURED = "not measured"
PHASES = ("load", "process", "generate", "old/reference", "forward", "backward", "rest")
BATCHES = (8, 32, 64)  # rows that are decoded together
WAYS = ("dynamic", "captured", "compiled", "static")  # to compute a step of decoding
FEW = 4  # steps of the short generation that is taken off the long one


def step_table(result: dict[str, Any]) -> str:
    """A line for each phase: median seconds of both, their ratio with its range over the repeats, what there is."""
    lines = ["| phase | TRL, s | vlm_grpo, s | ratio | range | to gain |", "|---|---|---|---|---|---|"]
    for phase in (*PHASES, "step"):
        stock, ours = ([step[phase] for step in result["seconds"][kind]] for kind in ("trl", "ours"))
        if not any(stock):
            continue
        ratios = sorted(a / b for a, b in zip(stock, ours, strict=False) if b)
        shown = f"{statistics.median(ratios):.2f} | {ratios[0]:.2f}-{ratios[-1]:.2f}" if ratios else "not needed | "
        shown = shown if ours else f"{NOT_MEASURED} | "
        lines.append(f"| {phase} | {median(stock)} | {median(ours)} | {shown} | {to_gain(result, phase)} |")
    stock, ours = (result["memory"][kind] for kind in ("trl", "ours"))
    ratio = f"{statistics.median(stock) / statistics.median(ours):.2f}" if stock and ours else NOT_MEASURED
    lines.append(f"| peak memory, MiB | {median(stock, 0)} | {median(ours, 0)} | {ratio} | | |")
    return "\n".join(lines)


def median(values: list[float], digits: int = 3) -> str:
    """Return the median in so many digits, or that there is none: the run was cut off before."""
    return f"{statistics.median(values):.{digits}f}" if values else NOT_MEASURED


def to_gain(result: dict[str, Any], phase: str) -> str:
    """The ratio of images for decoding and processing, of operations for everything else."""
    kind = "calls" if phase in ("load", "process") else "operations"
    stock, ours = (result[kind][name].get(phase, 0) for name in ("trl", "ours"))
    if kind == "calls":
        return f"{stock} : {ours}"
    return f"{stock / ours:.2f}" if stock and ours else ""


def step_title(result: dict[str, Any]) -> str:
    """The setting in words."""
    setting = result["setting"]
    extras = [
        ("frozen tower", setting["frozen"]),
        ("LoRA", setting["lora"]),
        ("reference model", bool(setting["beta"])),
    ]
    named = [name for name, is_so in extras if is_so]
    numbers = f"P {result['prompt']}, C {setting['completion']}, G {setting['generations']}"
    return ", ".join([numbers, *named])


def bound(result: dict[str, Any], batch: int) -> float:
    """Return the tokens a second that the measured bandwidth allows, at the middle of the measured steps."""
    length = result["prompt"] + FEW + result["tokens"] / 2
    step = result["bytes"]["weights"] + batch * length * result["bytes"]["token"]
    return batch * result["bandwidth"] / step


def decoding_table(result: dict[str, Any]) -> str:
    """Return a line for each way: tokens a second at each batch size, and the share of the bound."""
    lines = ["| step | " + " | ".join(f"{batch} rows" for batch in BATCHES) + " |", "|---" * (len(BATCHES) + 1) + "|"]
    for way in WAYS:
        cells = [decoding_cell(result["seconds"].get(f"{way} {batch}"), result, batch) for batch in BATCHES]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    bounds = " | ".join(f"{bound(result, batch):,.0f}" for batch in BATCHES)
    return "\n".join([*lines, f"| bound of {result['bandwidth'] / 1e9:,.0f} GB/s | {bounds} |"])


def decoding_cell(measured: Sequence[float] | str | None, result: dict[str, Any], batch: int) -> str:
    """Return tokens a second with their share of the bound, or why there are none."""
    if measured is None or isinstance(measured, str):
        return measured or "not measured"
    rate = batch * result["tokens"] / statistics.median(measured)
    return f"{rate:,.0f} ({rate / bound(result, batch):.0%})"


def learning_line(result: dict[str, Any]) -> str:
    """Return one line of what was learned, as far as the run came."""
    curve = result["curve"]
    tenth = max(1, len(curve) // 10)
    ends = [sum(part) / len(part) for part in (curve[:tenth], curve[-tenth:]) if part]
    said = [f"{result.get('parameters', 0) / 1e6:.0f} million parameters, {len(curve)} steps"]
    said += [f"sampled accuracy {ends[0]:.1%} to {ends[-1]:.1%}"] if ends else ["no step"]
    said += [f"held-out accuracy {result['before']:.1%} before"] if "before" in result else []
    said += [f"{result['after']:.1%} after"] if "after" in result else []
    training = result["seconds"].get("training")
    return ", ".join([*said, *([f"{training / len(curve):.2f} s a step"] if training and curve else [])])
