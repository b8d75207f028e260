"""Whether the quickstart reaches its bound with every seed and number of threads, and how long it takes.

    python benchmarks/quickstart.py [--seeds 5] [--threads 1 2 4] [--output benchmarks/quickstart.json]

Each run is the real command in a process of its own. Results are added to the file as they come; runs that are in it
already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run what is missing and print the table; 1 where a run missed the quickstart's bound."""
    options = parser().parse_args()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else []
    known = {(result["seed"], result["threads"]) for result in results}
    for threads in options.threads:
        for seed in range(options.seeds):
            if (seed, threads) not in known:
                results.append(run(seed, threads))
                options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(results)))
    return int(any(result["status"] for result in results))


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    flags.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4], help="numbers of threads (default: 1 2 4)")
    flags.add_argument("--output", type=Path, default=HERE / "quickstart.json", help="file of the results")
    return flags


def run(seed: int, threads: int) -> dict[str, float]:
    """One quickstart: its exit status, held-out accuracies and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "vlm_grpo.quickstart", "--seed", str(seed), "--output_dir", folder]
        status = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False).returncode
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    accuracies = {name: round(results[name]["accuracy"]["value"], 3) for name in ("before", "after")}
    return {
        "seed": seed,
        "threads": threads,
        "status": status,
        **accuracies,
        "seconds": round(sum(results["seconds"].values())),
    }


def table(results: list[dict[str, float]]) -> list[str]:
    """One line for each number of threads: lowest and highest accuracy after, and the median of the seconds."""
    lines = [
        "| threads | seeds | held-out accuracy before | after, lowest to highest | seconds, median |",
        "|---|---|---|---|---|",
    ]
    for threads in sorted({result["threads"] for result in results}):
        rows = [result for result in results if result["threads"] == threads]
        before, after = (sorted(row[name] for row in rows) for name in ("before", "after"))
        seconds = sorted(row["seconds"] for row in rows)[len(rows) // 2]
        accuracies = f"{before[0]:.1%} to {before[-1]:.1%} | {after[0]:.1%} to {after[-1]:.1%}"
        lines.append(f"| {threads} | {len(rows)} | {accuracies} | {seconds} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
