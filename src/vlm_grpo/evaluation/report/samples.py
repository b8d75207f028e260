"""A page of the examples of an evaluation or a comparison to search, filter and sort. One HTML file.

It stays small for any number of examples: only the most interesting examples (worst and best, alternating) have
thumbnails, up to a budget, texts are truncated, and cards are created on scrolling. A note on the page explains this.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation.report.overlay import OverlayBox, as_json, boxes_of, masks_of, paint_masks
from vlm_grpo.evaluation.report.trajectory_view import final_text, page_turns, question_text
from vlm_grpo.evaluation.strict_json import dumps
from vlm_grpo.io import write_whole
from vlm_grpo.records import JsonObject, Prediction

if TYPE_CHECKING:
    from markupsafe import Markup


SIDE = 320  # longer side of a thumbnail in pixels
TINY = 100  # pixels; images up to this size are not changed
IMAGE_BYTES, MAX_WITH_IMAGES = 10_000_000, 1000  # of all thumbnails in a page, as base64; examples with images
MAX_EXAMPLES, TEXT_LENGTH, TEXT_BYTES = 20_000, 1500, 12_000_000

Thumbnail = tuple[str, int, int]  # a data URI, width and height


@dataclass(frozen=True)
class SummaryTable:
    """A table of the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""


@dataclass
class SampleView:
    """One example of the page.

    `answers` are (label, prediction, is_correct or None); `score` is the value for filtering and sorting;
    `media` are the images in any data format, or None for missing ones. For episodes, `media` are the images of the
    prompt, and `of_tools` those returned by tools in all answers, both in the order of the trajectories.
    """

    prediction: Prediction
    answers: Sequence[tuple[str, Prediction, bool | None]]
    score: float | None
    media: Sequence[object] = ()
    tags: Sequence[str] = field(default_factory=list)
    of_tools: Sequence[object] = ()


@dataclass(frozen=True)
class SamplesPage:
    """The page without its examples; `sorts` are (value, text), the first one is the default."""

    title: str
    lead: str
    tables: Sequence[SummaryTable]
    score_name: str
    sorts: Sequence[tuple[str, str]] = (("worst", "worst first"), ("best", "best first"), ("row", "order of the data"))
    tag_name: str = "group"


def write_page(path: str | Path, page: SamplesPage, examples: Sequence[SampleView]) -> Path:
    """Write the page; all text is escaped and all images are embedded."""
    from jinja2 import Environment, StrictUndefined

    order = order_by_interest(examples)
    included = sorted(order[:MAX_EXAMPLES])
    length = _text_length(sum(_texts(examples[number]) for number in included))
    entries = {number: _entry(examples[number], length) for number in included}
    pictured = _add_pictures(entries, examples, order)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("vlm_grpo.evaluation.report").joinpath("samples.html").read_text(encoding="utf-8")
    html = environment.from_string(source).render(
        page=page,
        notes=_notes(examples, len(included), pictured),
        tags=sorted({tag for example in examples for tag in example.tags}),
        data=script_json([entries[number] for number in included]),
    )
    write_whole(Path(path), html)
    return Path(path)


def order_by_interest(examples: Sequence[SampleView]) -> list[int]:
    """Return example numbers, lowest and highest scores alternating; those without a score come last."""
    scores = {n: e.score for n, e in enumerate(examples) if e.score is not None and _is_number(e.score)}
    scored = sorted(scores, key=scores.__getitem__)
    turns = [n for place in range(len(scored)) for n in (scored[place], scored[-1 - place])]
    rest = [n for n, example in enumerate(examples) if not _is_number(example.score)]
    return list(dict.fromkeys([*turns, *rest]))


def _is_number(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _text_length(texts: int) -> int:
    """Return the maximum length of a completion, or of a turn of an episode."""
    return min(TEXT_LENGTH, max(100, TEXT_BYTES // max(1, texts)))


def _texts(example: SampleView) -> int:
    return sum(1 + len(prediction.get("trajectory", ())) for _, prediction, _ in example.answers)


def _notes(examples: Sequence[SampleView], included: int, pictured: int) -> list[str]:
    with_media = sum(bool(example.media or example.of_tools) for example in examples)
    notes = []
    if any("mask" in (example.prediction.get("facts") or {}) for example in examples):
        notes.append("Masks: target in green, prediction in magenta, overlap in yellow.")
    odd = sum(example.score is not None and not _is_number(example.score) for example in examples)
    if odd:
        notes.append(f"{odd:,} scores are not finite (NaN, infinity): these examples are not sorted.")
    if included < len(examples):
        notes.append(f"The page has {included:,} of {len(examples):,} examples; predictions.jsonl has all of them.")
    if pictured < with_media:
        notes.append(
            f"{pictured:,} of {with_media:,} examples have images (alternating worst and best), to keep the page small."
        )
    return notes


def _entry(example: SampleView, length: int) -> JsonObject:
    """Return the example for the page's script, without its images."""
    prediction, of_tools = example.prediction, count()
    return {
        "n": prediction["row"],
        "id": str(prediction["id"])[:80],
        "q": question_text(prediction)[:length],
        "t": _plain(prediction["answer"])[:length],
        "s": example.score,
        "g": list(example.tags),
        "a": [_answer(*answer, length, of_tools) for answer in example.answers],
        "o": as_json(_boxes(example)),
        "m": len(example.media),
    }


def _boxes(example: SampleView) -> list[OverlayBox]:
    """Return the target boxes once, and the predicted ones of every answer."""
    overlays: list[OverlayBox] = []
    for number, (_, prediction, _) in enumerate(example.answers):
        boxes = boxes_of(prediction)
        overlays += [
            box._replace(kind=f"answer{number}" if box.kind == "answer" else "true")
            for box in boxes
            if box.kind == "answer" or number == 0
        ]
    return overlays


def _answer(
    label: str, prediction: Prediction, is_right: bool | None, length: int, of_tools: Iterator[int]
) -> JsonObject:
    scores = {name: value for name, value in prediction["scores"].items() if value is not None}
    text = final_text(prediction)
    answer = {
        "l": label,
        "t": None if text is None else text[:length],
        "r": is_right,
        "c": prediction["completion"][:length] + ("…" if len(prediction["completion"]) > length else ""),
        "s": " · ".join(f"{name} {value:.3g}" for name, value in scores.items()),
    }
    if "trajectory" in prediction:
        answer["p"] = page_turns(prediction["trajectory"], length, of_tools)
    samples = prediction.get("samples")
    return {**answer, "k": [str(part["predicted"])[:80] for part in samples[:32]]} if samples else answer


def _plain(answer: object) -> str:
    return answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer, ensure_ascii=False)


def _add_pictures(entries: Mapping[int, JsonObject], examples: Sequence[SampleView], order: Iterable[int]) -> int:
    """Add thumbnails to the first entries until the budget is used up; return their number."""
    spent = pictured = 0
    for number in order:
        example = examples[number]
        if number not in entries or not (example.media or example.of_tools):
            continue
        pictures, of_tools = _pictures(example), [_picture(medium) for medium in example.of_tools]
        size = sum(len(picture[0]) for picture in [*pictures, *of_tools] if picture)
        if spent + size > IMAGE_BYTES or pictured >= MAX_WITH_IMAGES:
            break
        entries[number]["i"] = pictures
        if of_tools:
            entries[number]["j"] = of_tools
        spent, pictured = spent + size, pictured + 1
    return pictured


def _pictures(example: SampleView) -> list[Thumbnail | None]:
    """Return data URI, width and height of each image; None if it can no longer be read."""
    pictures: list[Thumbnail | None] = []
    masked: list[Thumbnail] = []
    target = int((example.prediction.get("facts") or {}).get("box_image") or 0)
    for number, medium in enumerate(example.media):
        try:
            image = open_image(image_ref(medium))
        except (OSError, ValueError):
            pictures.append(None)
            continue
        image.thumbnail((SIDE, SIDE))
        pictures.append(_address(image))
        masked += _masked(image, example) if number == target else []
    return [*pictures, *masked]  # boxes refer to images by number


def _picture(medium: object) -> Thumbnail | None:
    try:
        image = open_image(image_ref(medium))
    except (OSError, ValueError):
        return None
    image.thumbnail((SIDE, SIDE))
    return _address(image)


def _masked(image: Image.Image, example: SampleView) -> list[Thumbnail]:
    """Return the image with the masks of each answer; none if the example has no mask."""
    masks = [masks_of(prediction) for _, prediction, _ in example.answers]
    return [_address(paint_masks(image, *pair)) for pair in masks if pair is not None]


def _address(image: Image.Image) -> Thumbnail:
    """Return data URI, width and height: PNG for tiny images, to keep their pixels, otherwise JPEG."""
    file = io.BytesIO()
    is_tiny = max(image.size) <= TINY
    image.convert("RGB").save(file, format="PNG" if is_tiny else "JPEG", **({} if is_tiny else {"quality": 80}))
    kind = "png" if is_tiny else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii"), *image.size


def script_json(value: object) -> Markup:
    """Return JSON that is safe inside a script element."""
    from markupsafe import Markup

    text = dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character, escaped in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(character, escaped)
    return Markup(text)
