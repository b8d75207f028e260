"""Does every algorithm learn? The digits of the quickstart, each algorithm, several seeds: rewards before and after.

python benchmarks/algorithms.py [--algorithms grpo opo] [--seeds 0 1 2] [--rollouts 250] [--output FILE.json]
python benchmarks/algorithms.py --report FILE.json      the table on standard output, docs/algorithms.png

All start from the same warm start of their seed, sample 64 completions a rollout (8 of each prompt) and use the same
learning rate, with the exceptions in OWN; one with several updates per rollout takes as many smaller ones.
The curve is the share of right answers among sampled completions. A run adds itself to the output file, so that one
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from vlm_grpo.algorithms import ALGORITHMS
from vlm_grpo.quickstart.demo import prepare_digits, warm_start
from vlm_grpo.quickstart.run import QuickstartRun, QuickstartSettings
from vlm_grpo.quickstart.warm_start import completion

ROOT = Path(__file__).resolve().parents[1]
BATCH, GROUP, TENTH = 64, 8, 10
RISE = 0.2
OWN = {
    "dapo": {"mask_truncated_completions": False},  # completions of 24 tokens end by themselves
    "kl_cov": {"learning_rate": 1e-4},  # its ratio is not clipped: at the others' rate one seed of three broke down
    "grpo_passk": {"num_generations": 2},  # only a single right answer of a group counts: of eight mostly several are
}


def expert_file(run: QuickstartRun, files: Any) -> Path:
    """An expert's answer to every training image: the right digit."""
    path = run.folder / "expert.jsonl"
    rows = [json.loads(line) for line in files.train.read_text(encoding="utf-8").splitlines()]
    said = [{"id": row["id"], "expert": completion(row["conversations"][1]["value"])} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in said), encoding="utf-8")
    return path


def command(name: str, run: QuickstartRun, files: Any, folder: Path, rollouts: int) -> list[str]:
    """The training command of an algorithm."""
    config = ALGORITHMS[name]
    updates = math.gcd(config.updates_per_rollout, BATCH // GROUP)
    flags = {
        "algorithm": name,
        "model_name_or_path": run.warm,
        "data_file_paths": files.train,
        "image_folders": files.images,
        "reward_funcs": ["accuracy", "format"],
        "output_dir": folder,
        "max_steps": rollouts * updates,
        "per_device_train_batch_size": BATCH // updates,
        "steps_per_generation": updates,
        "num_generations": GROUP,
        "max_completion_length": 24,
        "learning_rate": run.settings.learning_rate,
        "lr_scheduler_type": "linear",
        "seed": run.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "live_report": False,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        **({"expert_data_file_paths": expert_file(run, files)} if config.family.needs_demonstrations else {}),
        **OWN.get(name, {}),
    }
    words = [sys.executable, str(ROOT / "src" / "vlm_grpo" / "grpo_jsonl.py")]
    for flag, value in flags.items():
        words += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def curve(name: str, run: QuickstartRun, files: Any, rollouts: int) -> list[float]:
    """Train, and give the share of right answers in every rollout."""
    folder = run.folder / name
    log = run.folder / f"{name}.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        words = command(name, run, files, folder, rollouts)
        done = subprocess.run(words, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: status {done.returncode}, see {log}")
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["rewards/accuracy/mean"] for entry in history if "rewards/accuracy/mean" in entry]


def measure(options: argparse.Namespace) -> None:
    """Add each run that the output file does not have yet."""
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    for seed in options.seeds:
        run = QuickstartRun("grpo", seed, options.folder / f"seed{seed}", QuickstartSettings())
        files = prepare_digits(run)
        if not run.warm.exists():
            warm_start(run, files)
        for name in options.algorithms or ALGORITHMS:
            if str(seed) in results.setdefault(name, {}):
                continue
            results[name][str(seed)] = curve(name, run, files, options.rollouts)
            options.output.write_text(json.dumps(results) + "\n", encoding="utf-8")
            print(row(name, results[name]), flush=True)


def row(name: str, curves: dict[str, list[float]]) -> str:
    """A line of the table: first and last tenth of the rollouts, and when the rise of 0.2 was reached, by seed."""
    firsts = [mean(values[: len(values) // TENTH]) for values in curves.values()]
    lasts = [mean(values[-(len(values) // TENTH) :]) for values in curves.values()]
    reached = [risen_at(values, first) for values, first in zip(curves.values(), firsts, strict=True)]
    rises = [last - first for first, last in zip(firsts, lasts, strict=True)]
    when = ", ".join("not" if step is None else str(step) for step in reached)
    return f"| `{name}` | {mean(firsts):.3f} | {mean(lasts):.3f} | {min(rises):+.3f} to {max(rises):+.3f} | {when} |"


def risen_at(values: list[float], first: float) -> int | None:
    """The rollout by which the mean of ten is 0.2 above the beginning; None if it never is."""
    for end in range(TENTH, len(values) + 1):
        if mean(values[end - TENTH : end]) >= first + RISE:
            return end
    return None


def report(path: Path) -> None:
    """The table, and the picture of all curves (means of the seeds, smoothed)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from vlm_grpo.evaluation.report.chart import smooth

    results = json.loads(path.read_text(encoding="utf-8"))
    print("| algorithm | first tenth | last tenth | improvement, by seed | rollouts to +0.2, by seed |")
    print("|---|---|---|---|---|")
    columns = 5
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(12, 1.9 * rows + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis in axes[len(results) :]:
        axis.axis("off")
    for axis, (name, curves) in zip(axes, results.items(), strict=False):
        print(row(name, curves))
        for values in curves.values():
            axis.plot(smooth(values, 15), color="#1d5fd0", linewidth=1, alpha=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(0.3, 1)
        axis.grid(color="#dfe3ea", linewidth=0.5)
    figure.supxlabel("rollout", fontsize=9)
    figure.supylabel("share of right answers, sampled", fontsize=9)
    figure.savefig(ROOT / "docs" / "algorithms.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), help="which ones (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=250)
    parser.add_argument("--folder", type=Path, default=Path("algorithms_output"), help="for models and logs")
    parser.add_argument("--output", type=Path, default=Path("algorithms.json"))
    parser.add_argument("--report", type=Path, help="a file of results to show, without measuring")
    options = parser.parse_args()
    report(options.report) if options.report else measure(options)


if __name__ == "__main__":
    main()
