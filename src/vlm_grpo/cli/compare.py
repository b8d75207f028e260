"""`vlm-grpo compare RUN_A RUN_B`: compare two evaluations of the same data, with significance tests.

Prints every metric of both runs, the difference with its 95 % interval and a paired test, and writes a page with the
examples that changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.cli.command_parser import CommandParser
from vlm_grpo.records import JsonObject

IGNORED = ("output_dir", "overwrite", "batch_size", "concurrency", "timeout", "retries")

if TYPE_CHECKING:
    from vlm_grpo.evaluation.comparison import Difference, EvaluationRun


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = CommandParser("vlm-grpo compare", description=__doc__.split("\n\n")[1])
    add = flags.add_argument
    add("run_a", help="output folder of `vlm-grpo evaluate`")
    add("run_b", help="another output folder, of the same task and data")
    add("--output", metavar="FILE.html", help="the page (default: compare.html in RUN_B)")
    add("--all_rows", action="store_true", help="also show the examples with the same score in both")
    add("--image_folder", help="folder of image files that have been moved since the evaluation")
    add("--seed", type=int, default=0, help="random seed of bootstrap and permutations (default: 0)")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Compare two runs and return the exit status: 0, or 2 for runs that cannot be compared."""
    options = parser().parse_args(argv)
    from vlm_grpo.evaluation.comparison import CompareError, common_rows, compare_runs, read_run

    try:
        first, second = read_run(options.run_a), read_run(options.run_b)
        rows = common_rows(first, second)
        differences = compare_runs(first, second, options.seed)
    except CompareError as error:
        print(f"vlm-grpo compare: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(first, second, rows, differences)))
    from vlm_grpo.evaluation.report.comparison_page import compare_report

    path = Path(options.output or second.folder / "compare.html")
    compare_report(path, first, second, rows, differences, all_rows=options.all_rows, image_folder=options.image_folder)
    print(f"written: {path}")
    return 0


def lines(first: EvaluationRun, second: EvaluationRun, rows: list[int], differences: list[Difference]) -> list[str]:
    """Return the table as text."""
    left = f"{len(rows)} examples in both; A {first.folder}: {len(first.predictions)}, "
    head = f"{left}B {second.folder}: {len(second.predictions)}"
    table = [f"{'metric':<16} {'A':>7} {'B':>7} {'B - A [95 % interval]':<26} {'p':>7}  test"]
    for item in differences:
        values = f"{item.text(item.first):>7} {item.text(item.second):>7} {item.interval:<26}"
        table.append(f"{item.name:<16} {values} {item.p:>7.2g}  {item.test}")
    return [head, *changed_settings(first.results, second.results), *table]


def changed_settings(first: JsonObject, second: JsonObject) -> list[str]:
    """Return one line for each setting in which the runs differ."""
    before, after = first.get("settings", {}), second.get("settings", {})
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    changed = [f"--{name}: A {before.get(name)}, B {after.get(name)}" for name in names if name not in IGNORED]
    is_other = first.get("rows") == second.get("rows") and first.get("prompts") != second.get("prompts")
    return [*changed, *(["the prompts around the questions differ"] if is_other else [])]


if __name__ == "__main__":
    sys.exit(main())
