"""A report as one HTML file that opens without a server: tables, a reward curve, images with the model's answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation.chart import Curve, curve_svg

THUMBNAIL = 224  # pixels, the longer side


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
    Path(path).write_text(html, encoding="utf-8")
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
    return Answer(label, shown[:300], None if score is None else score >= 0.5)


def evaluation_report(path: str | Path, title: str, evaluation: Any, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The report of one evaluation: its metrics, the worst examples and the best.

    Args:
        evaluation: what `vlm_grpo.evaluate` returned.
        rows: the data that was evaluated, for its images.
    """
    metric = next(iter(evaluation.metrics))
    judged = [prediction for prediction in evaluation.predictions if prediction["scores"][metric] is not None]
    ranked = sorted(judged, key=lambda prediction: prediction["scores"][metric])
    worst, best = ranked[:12], ranked[12:][-12:]

    def cards(chosen: list[dict[str, Any]]) -> list[Card]:
        return [prediction_card(rows[prediction["row"]], prediction, metric) for prediction in chosen]

    table = [[name, str(value), str(value.count)] for name, value in evaluation.metrics.items()]
    return write_report(
        path,
        title,
        f"Greedy answers to {len(evaluation.predictions)} examples, task {evaluation.task}.",
        [
            Section("Metrics", header=("metric", "mean [95 % interval]", "examples"), rows=table),
            Section("Worst examples", f"By {metric}.", cards=cards(worst)),
            Section("Best examples", f"By {metric}.", cards=cards(best)),
        ],
    )


def prediction_card(row: Mapping[str, Any], prediction: Mapping[str, Any], metric: str) -> Card:
    """The card of one example."""
    return Card(
        images=tuple(thumbnail(ref) for ref in row["images"]),
        question=prediction["question"].replace("<image>", ""),
        truth=str(prediction["answer"]),
        answers=(answer_of(prediction, metric),),
    )
