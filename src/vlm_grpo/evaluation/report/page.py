"""A report as one HTML file that opens without a server: tables, a reward curve, images with the model's answers."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation.aggregate import Metric
from vlm_grpo.evaluation.report.cards import CardAnswer, ExampleCard
from vlm_grpo.evaluation.report.chart import Curve, curve_svg
from vlm_grpo.evaluation.report.samples import SamplesPage, SampleView, SummaryTable, write_page
from vlm_grpo.evaluation.report.trajectory_view import trajectory_images
from vlm_grpo.evaluation.sampling_params import GRADED
from vlm_grpo.io import write_whole
from vlm_grpo.records import Prediction, Row

if TYPE_CHECKING:
    from vlm_grpo.evaluation import Evaluation


THUMBNAIL = 224  # longer side in pixels
MAX_GROUPS = 40  # in the page's table


@dataclass(frozen=True)
class Section:
    """A section of the report; empty fields are omitted."""

    title: str
    text: str = ""
    code: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    curve: Curve | None = None
    cards: Sequence[ExampleCard] = field(default=())


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the page; all text is escaped and all images are embedded."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    environment.filters["curve"] = curve_svg
    source = files("vlm_grpo.evaluation.report").joinpath("page.html").read_text(encoding="utf-8")
    html = environment.from_string(source).render(title=title, lead=lead, sections=sections)
    write_whole(Path(path), html)
    return Path(path)


def data_uri(png: bytes) -> str:
    """Return PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def thumbnail(source: object, where: str = "") -> bytes:
    """Return PNG bytes of an image in any data format; small images keep their size."""
    image = open_image(image_ref(source, where))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def answer_of(prediction: Prediction, metric: str, label: str = "answer") -> CardAnswer:
    """Return a prediction's parsed answer; its whole completion if there is none."""
    score = prediction["scores"][metric]
    text = prediction["predicted"]
    display_text = f"(no answer) {prediction['completion']}" if text is None else text
    is_right = None if score is None or not math.isfinite(score) else score >= 0.5
    return CardAnswer(label, display_text[:300], is_right)


def evaluation_report(path: str | Path, title: str, evaluation: Evaluation, rows: Sequence[Row]) -> Path:
    """Write the page of one evaluation: its metrics, and all examples to search, filter and sort by score.

    Args:
        evaluation: what `vlm_grpo.evaluate` returned.
        rows: the evaluated data, for its images.
    """
    predictions = evaluation.predictions
    name = ranking_score(predictions[0]["scores"])
    several = max((len(prediction.get("samples", "1")) for prediction in predictions), default=1)
    is_played = "episode" in predictions[0]
    what = "episodes of" if is_played else "answers to" if several == 1 else "answers each to"
    kind = f"Greedy {what}" if several == 1 else f"{several} {what}"
    page = SamplesPage(
        title=title,
        lead=f"{kind} {len(predictions):,} examples, task {evaluation.task}; examples are ranked by {name}.",
        tables=[metric_table(evaluation.metrics), *group_tables(evaluation)],
        score_name=name,
    )
    return write_page(
        path, page, [_sample_view(prediction, rows, name, Path(path).parent) for prediction in predictions]
    )


def ranking_score(scores: Mapping[str, object]) -> str:
    """Return the reward that ranks examples: that of the task, or the IoU that it thresholds.

    For episodes it is the environment's reward, if it has one.
    """
    first = "reward" if "reward" in scores else next(iter(scores))
    return "iou" if first.startswith("iou@") and "iou" in scores else first


def is_correct(scores: Mapping[str, float | None]) -> bool | None:
    """Return whether the answer is correct by the task's reward; None if that is graded or does not apply."""
    name, value = next(iter(scores.items()))
    return None if value is None or name in GRADED or not math.isfinite(value) else value >= 0.5


def _sample_view(prediction: Prediction, rows: Sequence[Row], name: str, folder: Path) -> SampleView:
    tags = [prediction["group"]] if "group" in prediction else []
    media: Sequence[object]
    of_tools: Sequence[object]
    if "trajectory" in prediction:
        media, of_tools = (trajectory_images(prediction, folder, of_tools=is_tools) for is_tools in (False, True))
    else:
        media, of_tools = RowImages(rows, prediction["row"], len(prediction["images"])), ()
    answers = [("answer", prediction, is_correct(prediction["scores"]))]
    return SampleView(prediction, answers, prediction["scores"].get(name), media, tags, of_tools)


class RowImages(Sequence):
    """The images of a row, loaded on access."""

    def __init__(self, rows: Sequence[Row], row: int, count: int) -> None:
        self.rows = rows
        self.row = row
        self.length = count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> object:  # type: ignore[override]  # no slices
        if not 0 <= number < self.length:
            raise IndexError(number)
        return self.rows[self.row]["images"][number]


def metric_table(metrics: Mapping[str, Metric]) -> SummaryTable:
    """Return a table of all metrics with their intervals."""
    rows = [[name, str(value), f"{value.count:,}"] for name, value in metrics.items()]
    return SummaryTable("Metrics", ("metric", "value [95 % interval]", "examples"), rows)


def group_tables(evaluation: Evaluation) -> list[SummaryTable]:
    """Return tables of the metrics of the largest groups; empty without groups."""
    if not evaluation.groups:
        return []
    names = list(evaluation.metrics)
    sizes = Counter(prediction["group"] for prediction in evaluation.predictions)
    largest = [group for group, _ in sizes.most_common(MAX_GROUPS)]
    rows = [[group, f"{sizes[group]:,}", *(str(evaluation.groups[group][name]) for name in names)] for group in largest]
    left = len(evaluation.groups) - len(largest)
    text = f"The {len(largest)} largest groups; results.json has the other {left}." if left else ""
    return [SummaryTable("Groups", ("group", "examples", *names), rows, text)]
