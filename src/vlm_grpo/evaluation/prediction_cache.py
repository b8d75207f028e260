"""Predictions on disk during an evaluation, so that an interrupted one resumes.

`partial.json` holds the settings. Each process appends its predictions to `predictions.partial-RANK.jsonl`
when a batch ends; an incomplete line, left by a kill, is dropped and its row evaluated again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from vlm_grpo.evaluation.strict_json import dumps
from vlm_grpo.io import write_whole
from vlm_grpo.records import JsonObject, Prediction

HEADER, LINES, FINISHED = "partial.json", "predictions.partial-*.jsonl", "results.json"


class ResumeError(ValueError):
    """The output folder does not contain the start of this evaluation."""


def open_cache(folder: Path, settings: JsonObject, *, overwrite: bool = False) -> None:
    """Prepare a folder, in one process, for a new evaluation or for resuming the same one.

    Args:
        settings: everything that the predictions depend on, as JSON values.
        overwrite: delete existing results.

    Raises:
        ResumeError: the folder contains a finished evaluation, or one with other settings.
    """
    if overwrite:
        _remove(folder)
    if (folder / FINISHED).exists():
        raise ResumeError(
            f"--output_dir {folder} contains a finished evaluation ({FINISHED}); choose another folder, or replace it "
            "with --overwrite"
        )
    header = folder / HEADER
    json_settings = json.loads(json.dumps(settings, default=str))
    if header.exists():
        _check_settings(folder, json.loads(header.read_text(encoding="utf-8")), json_settings)
        return
    if list(folder.glob(LINES)):
        raise ResumeError(
            f"--output_dir {folder} contains predictions but no {HEADER} with their settings; use --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(header, json.dumps(json_settings, indent=1) + "\n")


def _check_settings(folder: Path, before: JsonObject, now: JsonObject) -> None:
    """Raise a ResumeError that names every setting that differs."""
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    if names:
        changes = "\n  ".join(f"{name}: {before.get(name)!r}, now {now.get(name)!r}" for name in names)
        raise ResumeError(
            f"--output_dir {folder} contains an unfinished evaluation with other settings:\n  {changes}\n"
            "use its settings to resume, choose another folder, or replace it with --overwrite"
        )


def read_predictions(folder: Path) -> list[Prediction]:
    """Return all complete predictions, each row once."""
    by_row: dict[int, Prediction] = {}
    for path in sorted(folder.glob(LINES)):
        for line in path.read_bytes().split(b"\n")[:-1]:  # the part after the last newline is incomplete
            prediction = json.loads(line)
            by_row[prediction["row"]] = prediction
    return list(by_row.values())


class PredictionWriter:
    """Appends the predictions of one process to its file; each call flushes whole lines to disk."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / LINES.replace("*", str(rank))
        if self.path.exists():
            complete_size = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(self.path, complete_size)

    def __call__(self, predictions: Sequence[Prediction]) -> None:
        lines = "".join(dumps(entry, ensure_ascii=False, default=str) + "\n" for entry in predictions)
        with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def remove_cache(folder: Path) -> None:
    """Remove the files that are only needed to resume."""
    for path in [*folder.glob(LINES), folder / HEADER]:
        path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    (folder / FINISHED).unlink(missing_ok=True)  # first, so that the rest is not taken for a finished evaluation
    remove_cache(folder)
