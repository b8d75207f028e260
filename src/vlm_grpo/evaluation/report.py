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
from typing import Any

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation.browse import Page, Shown, Table, write_page
from vlm_grpo.evaluation.chart import Curve, curve_svg
from vlm_grpo.evaluation.sampling import GRADED
from vlm_grpo.evaluation.trajectory import trajectory_images
from vlm_grpo.io import write_whole

THUMBNAIL = 224  # pixels, the longer side
MOST_GROUPS = 40  # in the page's table


@dataclass(frozen=True)
class Answer:
    """What was answered and whether it was right; None is undecided."""

    label: str
    text: str
    is_right: bool | None = None


@dataclass(frozen=True)
class Card:
    """One example: images as PNG bytes, the question, the truth and one or more answers to it."""

    images: tuple[bytes, ...]
    question: str
    truth: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Section:
    """A part of the report; whatever is empty is left out."""

    title: str
    text: str = ""
    code: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    curve: Curve | None = None
    cards: Sequence[Card] = field(default=())


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the page; all text is escaped, all images are inside the file."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    environment.filters["curve"] = curve_svg
    source = files("vlm_grpo.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    html = environment.from_string(source).render(title=title, lead=lead, sections=sections)
    write_whole(Path(path), html)
    return Path(path)


def data_uri(png: bytes) -> str:
    """PNG bytes as an address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def thumbnail(source: Any, where: str = "") -> bytes:
    """PNG bytes of an image given in any form that data comes in; small ones keep their size."""
    image = open_image(image_ref(source, where))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def answer_of(prediction: Mapping[str, Any], metric: str, label: str = "answer") -> Answer:
    """A prediction's parsed answer; its whole completion when there is none."""
    score = prediction["scores"][metric]
    text = prediction["predicted"]
    shown = f"(no answer) {prediction['completion']}" if text is None else text
    is_right = None if score is None or not math.isfinite(score) else score >= 0.5
    return Answer(label, shown[:300], is_right)


def evaluation_report(path: str | Path, title: str, evaluation: Any, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The page of one evaluation: its metrics, and all examples to search, filter and sort by the ranking reward.

    Args:
        evaluation: what `vlm_grpo.evaluate` returned.
        rows: the data that was evaluated, for its images.
    """
    predictions = evaluation.predictions
    name = ranking(predictions[0]["scores"])
    several = max((len(prediction.get("samples", "1")) for prediction in predictions), default=1)
    is_played = "episode" in predictions[0]
    what = "episodes of" if is_played else "answers to" if several == 1 else "answers each to"
    kind = f"Greedy {what}" if several == 1 else f"{several} {what}"
    page = Page(
        title=title,
        lead=f"{kind} {len(predictions):,} examples, task {evaluation.task}; examples are ranked by {name}.",
        tables=[metric_table(evaluation.metrics), *group_tables(evaluation)],
        score_name=name,
    )
    return write_page(path, page, [_shown(prediction, rows, name, Path(path).parent) for prediction in predictions])


def ranking(scores: Mapping[str, Any]) -> str:
    """The reward that examples are ranked by: the task's own, or the overlap that it is a threshold of.

    Of episodes it is the environment's, if it has one.
    """
    own = "reward" if "reward" in scores else next(iter(scores))
    return "iou" if own.startswith("iou@") and "iou" in scores else own


def verdict(scores: Mapping[str, Any]) -> bool | None:
    """Whether the answer is right by the task's own reward; None where that is graded or does not apply."""
    name, value = next(iter(scores.items()))
    return None if value is None or name in GRADED or not math.isfinite(value) else value >= 0.5


def _shown(prediction: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str, folder: Path) -> Shown:
    tags = [prediction["group"]] if "group" in prediction else []
    if "trajectory" in prediction:
        media, of_tools = (trajectory_images(prediction, folder, of_tools=is_tools) for is_tools in (False, True))
    else:
        media, of_tools = RowImages(rows, prediction["row"], len(prediction["images"])), []
    answers = [("answer", prediction, verdict(prediction["scores"]))]
    return Shown(prediction, answers, prediction["scores"].get(name), media, tags, of_tools)


class RowImages(Sequence):
    """The images of a row, which is made only when one of them is asked for."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], row: int, count: int) -> None:
        self.rows = rows
        self.row = row
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < self.count:
            raise IndexError(number)
        return self.rows[self.row]["images"][number]


def metric_table(metrics: Mapping[str, Any]) -> Table:
    """Every metric with its interval."""
    rows = [[name, str(value), f"{value.count:,}"] for name, value in metrics.items()]
    return Table("Metrics", ("metric", "value [95 % interval]", "examples"), rows)


def group_tables(evaluation: Any) -> list[Table]:
    """The metrics of the largest groups; nothing where examples have none."""
    if not evaluation.groups:
        return []
    names = list(evaluation.metrics)
    sizes = Counter(prediction["group"] for prediction in evaluation.predictions)
    kept = [group for group, _ in sizes.most_common(MOST_GROUPS)]
    rows = [[group, f"{sizes[group]:,}", *(str(evaluation.groups[group][name]) for name in names)] for group in kept]
    left = len(evaluation.groups) - len(kept)
    text = f"The {len(kept)} largest groups; results.json has the other {left}." if left else ""
    return [Table("Groups", ("group", "examples", *names), rows, text)]
