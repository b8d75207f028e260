"""The measured steps of `benchmarks/step.py` as tables and a picture, in docs/performance.md.

python benchmarks/step_report.py benchmarks/step_cpu.json
The tables go between the two marks of docs/performance.md, the picture to docs/performance.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from step import PHASES, table, title

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLORS = ("#8c6bb1", "#d95f0e", "#1d5fd0", "#9e9ac8", "#1a7f37", "#74c476", "#b8bec9")  # one for each phase


def share(result: dict[str, Any], kind: str, phase: str) -> float:
    """Median seconds of a phase, in percent of the stock trainer's step."""
    whole = statistics.median(step["step"] for step in result["seconds"]["trl"])
    return 100 * statistics.median(step[phase] for step in result["seconds"][kind]) / whole


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Two bars for each setting: the phases of TRL's step and of this package's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.85 * len(results) + 1.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for row, result in enumerate(results.values()):
        for kind, place in (("trl", row - 0.19), ("ours", row + 0.19)):
            left = 0.0
            for phase, color in zip(PHASES, COLORS, strict=True):
                width = share(result, kind, phase)
                label = phase if (row, kind) == (0, "trl") else None
                axis.barh(place, width, height=0.34, left=left, color=color, label=label)
                left += width
            axis.text(left + 0.8, place, caption(result, kind), va="center", fontsize=8.5, color="#3b4252")
    axis.set_yticks(range(len(results)), [title(result).replace(", ", "\n", 1) for result in results.values()])
    axis.invert_yaxis()
    axis.set(xlim=(0, 118), xlabel="time of a training step, percent of TRL's")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PHASES), frameon=False)
    figure.savefig(path)


def caption(result: dict[str, Any], kind: str) -> str:
    """Who it is, and how much faster."""
    seconds = {name: statistics.median(step["step"] for step in result["seconds"][name]) for name in ("trl", "ours")}
    return "TRL" if kind == "trl" else f"vlm_grpo, {seconds['trl'] / seconds['ours']:.1f} x"


def insert(text: str, tables: str) -> str:
    """The page with new tables between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what benchmarks/step.py wrote with --output")
    results = json.loads(parser.parse_args().results.read_text(encoding="utf-8"))
    page = DOCS / "performance.md"
    tables = "\n\n".join(f"### {title(result)}\n\n{table(result)}" for result in results.values())
    page.write_text(insert(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    draw(results, DOCS / "performance.png")


if __name__ == "__main__":
    main()
