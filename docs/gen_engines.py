"""Write the table in docs/engines.md from benchmarks/engine_agreement.json: `python docs/gen_engines.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs from a checkout

from benchmarks.engine_agreement import FAMILIES, KINDS, RESULT

PAGE = Path(__file__).with_name("engines.md")
START, END = "<!-- written by docs/gen_engines.py -->\n", "<!-- end of what docs/gen_engines.py writes -->\n"
LIMIT = 1e-4  # a larger difference is not agreement
# Why a family, or a kind of prompt, does not agree.
BIDIRECTIONAL = (
    "the tokens of an image attend to each other in both directions, which vLLM's attention on a CPU leaves out; on "
    "CUDA its FlexAttention and Triton backends do it (vLLM pull request 27938), which is not measured here"
)
TILES = (
    "of several images in one prompt transformers cuts none into tiles, vLLM all; such a prompt is refused with an "
    "error (an image in each turn is processed by itself, and agrees)"
)
CONVOLUTION = "vLLM's kernel for the causal convolution on a CPU knows no float32, so that nothing can be measured here"
EXPERTS = "vLLM does not load the joined experts of this tiny model; why is not known yet"
REASONS: Mapping[str, str] = {
    "gemma3": BIDIRECTIONAL,
    "llava_onevision": TILES,
    "qwen3_5_think": CONVOLUTION,
    "qwen3_vl_moe": EXPERTS,
}


def table(result: Mapping[str, Any]) -> str:
    """Return the versions, a line for each family, and the reasons of what does not agree."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"Measured with {versions}, in float32 on a CPU:",
        "",
        f"| family | {' | '.join(KINDS)} | another image |",
        f"|---{'|---' * (len(KINDS) + 1)}|",
        *(_row(name, measured) for name, measured in sorted(result["families"].items())),
    ]
    reasons = [
        f"- {', '.join(f'`{name}`' for name, of_name in REASONS.items() if of_name == reason)}: {reason}."
        for reason in dict.fromkeys(REASONS.values())
    ]
    missing = [f"`{name}`" for name in FAMILIES if name not in result["families"]]
    rest = [f"- {', '.join(missing)}: not measured."] if missing else []
    return "\n".join([*lines, "", *reasons, *rest]) + "\n"


def _row(name: str, measured: Mapping[str, Any]) -> str:
    cells = [_cell(measured[kind]) for kind in KINDS]
    effect = measured.get("effect of the image")
    return f"| `{name}` | {' | '.join(cells)} | {'–' if effect is None else f'{effect:.1f}'} |"


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return "no"
    return f"{value:.0e}" if value < LIMIT else f"**{value:.0e}**"


def page() -> str:
    """Return the page with the table of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    return before + START + table(json.loads(RESULT.read_text(encoding="utf-8"))) + END + after


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
