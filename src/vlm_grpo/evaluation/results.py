"""Write the results of an evaluation: predictions.jsonl, report.html and results.json. No torch.

Episodes also leave copies of the images that tools returned, written during the episodes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.evaluation.report.page import evaluation_report
from vlm_grpo.evaluation.report.trajectory_view import remove_unused
from vlm_grpo.evaluation.strict_json import dumps
from vlm_grpo.io import write_whole
from vlm_grpo.records import JsonObject, Row

if TYPE_CHECKING:
    from vlm_grpo.evaluation import Evaluation

PACKAGES = (
    "vlm_grpo",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "pillow",
    "pycocotools",
    "openai",
)


def write_results(folder: Path, title: str, evaluation: Evaluation, dataset: Sequence[Row], facts: JsonObject) -> None:
    """Write the files to the folder; results.json is written last and marks a complete evaluation.

    Args:
        dataset: the rows, for their images.
        facts: additional entries of results.json: settings, seed, digests of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [dumps(prediction, ensure_ascii=False, default=str) + "\n" for prediction in evaluation.predictions]
    write_whole(folder / "predictions.jsonl", "".join(lines))
    evaluation_report(folder / "report.html", title, evaluation, dataset)
    remove_unused(folder, evaluation.predictions)
    results = {
        "task": evaluation.task,
        "examples": len(evaluation.predictions),
        "metrics": _as_json(evaluation.metrics),
        **(
            {"groups": {name: _as_json(group) for name, group in evaluation.groups.items()}}
            if evaluation.groups
            else {}
        ),
        **facts,
        "versions": versions(),
        "commit": commit(),
    }
    write_whole(folder / "results.json", dumps(results, indent=1, default=str) + "\n")


def _as_json(metrics: JsonObject) -> JsonObject:
    return {name: asdict(metric) for name, metric in metrics.items()}


def versions() -> dict[str, str | None]:
    """Return the installed versions of packages that an evaluation depends on."""
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed


def commit() -> str | None:
    """Return the git commit of this package, with `+` for uncommitted changes; None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        output = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(here.parent)])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return output[0] + ("+" if output[1] else "")
