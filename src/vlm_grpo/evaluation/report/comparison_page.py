"""The page of a comparison: both runs' metrics, and the examples that changed with both answers. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm_grpo.evaluation.comparison import Difference, EvaluationRun
from vlm_grpo.evaluation.report.page import is_correct, ranking_score
from vlm_grpo.evaluation.report.samples import SamplesPage, SampleView, SummaryTable, write_page
from vlm_grpo.evaluation.report.trajectory_view import trajectory_images

SORTS = (
    ("change", "largest change first"),
    ("worst", "lost first"),
    ("best", "gained first"),
    ("row", "order of the data"),
)


def compare_report(
    path: str | Path,
    first: EvaluationRun,
    second: EvaluationRun,
    rows: Sequence[int],
    differences: Sequence[Difference],
    *,
    all_rows: bool = False,
    image_folder: str | None = None,
) -> Path:
    """Write the page, with images whose files still exist.

    Args:
        rows: the rows in both runs.
        all_rows: also show examples with unchanged scores.
        image_folder: folder to search for moved image files by name.
    """
    name = ranking_score(first.predictions[rows[0]]["scores"])
    views = [_sample_view(first, second, row, name, image_folder) for row in rows]
    changed = [example for example in views if example.tags]
    gained = sum("gained" in example.tags for example in changed)
    page = SamplesPage(
        title=f"{first.folder.name} (A) and {second.folder.name} (B)",
        lead=(
            f"{len(rows):,} examples are in both. By {name}, {gained:,} are better in B, {len(changed) - gained:,} are "
            f"worse, {len(rows) - len(changed):,} are the same{'' if all_rows else ' and not shown'}."
        ),
        tables=[_table(differences)],
        score_name=f"B - A of {name}",
        sorts=SORTS,
        tag_name="change",
    )
    return write_page(path, page, views if all_rows else changed)


def _table(differences: Sequence[Difference]) -> SummaryTable:
    rows = [
        [
            item.name,
            item.text(item.first),
            item.text(item.second),
            item.interval,
            f"{item.p:.2g}",
            item.test,
            f"{item.count:,}",
        ]
        for item in differences
    ]
    text = "The interval is a paired bootstrap over examples; p is the probability of such a change by chance."
    return SummaryTable("Metrics", ("metric", "A", "B", "B - A [95 % interval]", "p", "test", "examples"), rows, text)


def _sample_view(first: EvaluationRun, second: EvaluationRun, row: int, name: str, folder: str | None) -> SampleView:
    pair = [run.predictions[row] for run in (first, second)]
    scores = [prediction["scores"].get(name) for prediction in pair]
    change = None if None in scores else scores[1] - scores[0]
    tags = [] if not change else ["gained" if change > 0 else "lost"]
    answers = [
        (label, prediction, is_correct(prediction["scores"])) for label, prediction in zip("AB", pair, strict=True)
    ]
    of_tools = [
        image for run in (first, second) for image in trajectory_images(run.predictions[row], run.folder, of_tools=True)
    ]
    return SampleView(pair[1], answers, change, [_file(source, folder) for source in pair[1]["images"]], tags, of_tools)


def _file(source: str | None, folder: str | None) -> str | None:
    """Return the image's path, or the file of the same name in the folder if it no longer exists."""
    if source is None:
        return None
    moved = Path(folder or ".") / Path(source).name
    return str(moved) if folder and not Path(source).is_file() and moved.is_file() else source
