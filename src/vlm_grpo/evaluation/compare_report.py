"""The page of a comparison: both runs' metrics, and the examples that changed with both answers. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_grpo.evaluation.browse import Page, Shown, Table, write_page
from vlm_grpo.evaluation.compare import Difference, Run
from vlm_grpo.evaluation.report import ranking, verdict

SORTS = (
    ("change", "largest change first"),
    ("worst", "lost first"),
    ("best", "gained first"),
    ("row", "order of the data"),
)


def compare_report(
    path: str | Path,
    first: Run,
    second: Run,
    rows: Sequence[int],
    differences: Sequence[Difference],
    *,
    all_rows: bool = False,
    image_folder: str | None = None,
) -> Path:
    """Write the page; images are those files that are still where the evaluation found them.

    Args:
        rows: those that both runs have.
        all_rows: show also the examples whose score did not change.
        image_folder: where a file of the same name is looked for otherwise.
    """
    name = ranking(first.predictions[rows[0]]["scores"])
    shown = [_shown(first.predictions[row], second.predictions[row], name, image_folder) for row in rows]
    changed = [example for example in shown if example.tags]
    gained = sum("gained" in example.tags for example in changed)
    page = Page(
        title=f"{first.folder.name} (A) beside {second.folder.name} (B)",
        lead=(
            f"{len(rows):,} examples are in both. By {name}, {gained:,} are better in B, {len(changed) - gained:,} are "
            f"worse, {len(rows) - len(changed):,} are the same{'' if all_rows else ' and not shown'}."
        ),
        tables=[_table(differences)],
        score_name=f"B - A of {name}",
        sorts=SORTS,
        tag_name="change",
    )
    return write_page(path, page, shown if all_rows else changed)


def _table(differences: Sequence[Difference]) -> Table:
    rows = [
        [
            item.name,
            f"{item.first:.1%}",
            f"{item.second:.1%}",
            f"{item.change:+.1%} [{item.low:+.1%}, {item.high:+.1%}]",
            f"{item.p:.2g}",
            item.test,
            f"{item.count:,}",
        ]
        for item in differences
    ]
    text = "The interval is a paired bootstrap over examples; p is how often chance alone would change as much."
    return Table("Metrics", ("metric", "A", "B", "B - A [95 % interval]", "p", "test", "examples"), rows, text)


def _shown(first: Mapping[str, Any], second: Mapping[str, Any], name: str, folder: str | None) -> Shown:
    scores = [prediction["scores"].get(name) for prediction in (first, second)]
    change = None if None in scores else scores[1] - scores[0]
    tags = [] if not change else ["gained" if change > 0 else "lost"]
    answers = [
        (label, prediction, verdict(prediction["scores"]))
        for label, prediction in zip("AB", (first, second), strict=True)
    ]
    return Shown(second, answers, change, [_file(source, folder) for source in second["images"]], tags)


def _file(source: str | None, folder: str | None) -> Any:
    """The image's path; where it is gone, the file of its name in the folder."""
    if source is None:
        return None
    moved = Path(folder or ".") / Path(source).name
    return str(moved) if folder and not Path(source).is_file() and moved.is_file() else source
