"""The measured steps of `benchmarks/step.py` as tables and a picture, in docs/performance.md.

python benchmarks/step_report.py benchmarks/step_cpu.json   the tables of a CPU, and docs/performance.png
python benchmarks/step_report.py --gpu DIR                  those of benchmarks/gpu.sh, and docs/performance_gpu.png
The tables go between the marks of docs/performance.md. A part that was not measured says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from computer import in_words
from tables import NOT_MEASURED, PHASES, decoding_table, learning_line, step_table, step_title

DOCS = Path(__file__).resolve().parents[1] / "docs"
CPU, GPU = "measured", "measured on a GPU"  # names of the marks in the page
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
    axis.set_yticks(range(len(results)), [step_title(result).replace(", ", "\n", 1) for result in results.values()])
    axis.invert_yaxis()
    axis.set(xlim=(0, 118), xlabel="time of a training step, percent of TRL's")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PHASES), frameon=False)
    figure.savefig(path)


def caption(result: dict[str, Any], kind: str) -> str:
    """Who it is, and how much faster."""
    seconds = {name: statistics.median(step["step"] for step in result["seconds"][name]) for name in ("trl", "ours")}
    return "TRL" if kind == "trl" else f"vlm_grpo, {seconds['trl'] / seconds['ours']:.1f} x"


def insert(text: str, name: str, tables: str) -> str:
    """The page with new tables between the marks of a name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def gpu_page(folder: Path) -> str:
    """Everything that `benchmarks/gpu.sh` left in a folder so far."""
    stages = read(folder / "stages.json") or {"computer": None, "stages": []}
    lines = [f"Measured on: {in_words(stages['computer'])}." if stages["computer"] else f"{NOT_MEASURED.capitalize()}."]
    if stages["stages"]:
        lines += ["", "| stage | outcome | s | |", "|---|---|---|---|"]
        lines += [f"| {s['name']} | {s['result']} | {s['seconds']:.0f} | {s['said']} |" for s in stages["stages"]]
    for result in (read(folder / "step.json") or {}).values():
        lines += ["", f"### {step_title(result)}", "", step_table(result)]
    decoding = read(folder / "decoding.json")
    lines += ["", "### Decoding alone, tokens a second", ""]
    lines += [decoding_table(decoding) if decoding and "bandwidth" in decoding else f"{NOT_MEASURED.capitalize()}."]
    learning = read(folder / "learning.json")
    lines += ["", "### A training on handwritten digits", ""]
    lines += [learning_line(learning) + "." if learning else f"{NOT_MEASURED.capitalize()}."]
    return "\n".join(lines)


def read(path: Path) -> Any:
    """What a stage wrote; None if it did not come so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def draw_curve(values: list[float], path: Path) -> None:
    """The accuracy of sampled completions at every step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(range(1, len(values) + 1), values, color="#1d5fd0", linewidth=1)
    axis.set(xlabel="step", ylabel="accuracy of sampled answers", ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def write_gpu(folder: Path, page: Path) -> None:
    """Put the folder's tables into the page, and its reward curve beside the page."""
    tables = gpu_page(folder)
    learning = read(folder / "learning.json")
    if learning and learning["curve"]:
        draw_curve(learning["curve"], page.with_name("performance_gpu.png"))
        tables += "\n\n![Accuracy of sampled answers by step](performance_gpu.png)"
    page.write_text(insert(page.read_text(encoding="utf-8"), GPU, tables), encoding="utf-8")


def write_cpu(results: dict[str, dict[str, Any]], page: Path) -> None:
    """Put the tables into the page, and the bars beside it."""
    tables = "\n\n".join(f"### {step_title(result)}\n\n{step_table(result)}" for result in results.values())
    page.write_text(insert(page.read_text(encoding="utf-8"), CPU, tables), encoding="utf-8")
    draw(results, page.with_name("performance.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("results", type=Path, nargs="?", help="what benchmarks/step.py wrote with --output, on a CPU")
    source.add_argument("--gpu", type=Path, metavar="DIR", help="the folder that benchmarks/gpu.sh wrote")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md", help="the page with the marks")
    parser.add_argument("--show", action="store_true", help="of a GPU: print what is there, and leave the page alone")
    options = parser.parse_args()
    if options.gpu and options.show:
        print(gpu_page(options.gpu))
    elif options.gpu:
        write_gpu(options.gpu, options.page)
    else:
        write_cpu(read(options.results), options.page)


if __name__ == "__main__":
    main()
