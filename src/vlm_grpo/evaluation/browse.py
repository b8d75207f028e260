"""A page that shows the examples of an evaluation or a comparison: search, filter by score, sort. One HTML file.

It stays small however many examples there are: images are thumbnails for those examples that are worth most (worst
and best by turns) until a budget is spent, texts are cut, and cards are made as one scrolls. The page says so.
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
from typing import Any

from PIL import Image

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation.overlay import as_json, boxes_of, masks_of, paint_masks
from vlm_grpo.evaluation.steps import asked, said_last, steps
from vlm_grpo.evaluation.strict_json import dumps
from vlm_grpo.io import write_whole

SIDE = 320  # pixels of a thumbnail's longer side
TINY = 100  # pixels: images no larger are kept as they are
IMAGE_BYTES, MOST_PICTURED = 10_000_000, 1000  # of all thumbnails in a page, as base64; examples with images
MOST_EXAMPLES, TEXT_LENGTH, TEXT_BYTES = 20_000, 1500, 12_000_000


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""


@dataclass
class Shown:
    """One example of the page.

    `answers` are (label, prediction, is it right; None is undecided); `score` is what the page filters and sorts by;
    `media` are the images as data comes in, or None for one that is gone. Of episodes, `media` are the images of the
    prompt, and `of_tools` those that tools showed in all answers, both in the order of the trajectories.
    """

    prediction: Mapping[str, Any]
    answers: Sequence[tuple[str, Mapping[str, Any], bool | None]]
    score: float | None
    media: Sequence[Any] = ()
    tags: Sequence[str] = field(default_factory=list)
    of_tools: Sequence[Any] = ()


@dataclass(frozen=True)
class Page:
    """What the page says around its examples; `sorts` are (value, text), the first one is chosen at first."""

    title: str
    lead: str
    tables: Sequence[Table]
    score_name: str
    sorts: Sequence[tuple[str, str]] = (("worst", "worst first"), ("best", "best first"), ("row", "order of the data"))
    tag_name: str = "group"


def write_page(path: str | Path, page: Page, examples: Sequence[Shown]) -> Path:
    """Write the page; all text is escaped, all images are inside the file."""
    from jinja2 import Environment, StrictUndefined

    order = by_worth(examples)
    kept = sorted(order[:MOST_EXAMPLES])
    length = _text_length(sum(_texts(examples[number]) for number in kept))
    entries = {number: _entry(examples[number], length) for number in kept}
    pictured = _add_pictures(entries, examples, order)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("vlm_grpo.evaluation").joinpath("browse.html").read_text(encoding="utf-8")
    html = environment.from_string(source).render(
        page=page,
        notes=_notes(examples, len(kept), pictured),
        tags=sorted({tag for example in examples for tag in example.tags}),
        data=script_json([entries[number] for number in kept]),
    )
    write_whole(Path(path), html)
    return Path(path)


def by_worth(examples: Sequence[Shown]) -> list[int]:
    """Numbers of the examples, the lowest and the highest score by turns; those without a score come last."""
    scored = sorted((n for n, e in enumerate(examples) if _is_number(e.score)), key=lambda n: examples[n].score)
    turns = [n for place in range(len(scored)) for n in (scored[place], scored[-1 - place])]
    rest = [n for n, example in enumerate(examples) if not _is_number(example.score)]
    return list(dict.fromkeys([*turns, *rest]))


def _is_number(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _text_length(texts: int) -> int:
    """How much of a completion, or of a turn of an episode, is kept."""
    return min(TEXT_LENGTH, max(100, TEXT_BYTES // max(1, texts)))


def _texts(example: Shown) -> int:
    return sum(1 + len(prediction.get("trajectory", ())) for _, prediction, _ in example.answers)


def _notes(examples: Sequence[Shown], kept: int, pictured: int) -> list[str]:
    with_media = sum(bool(example.media or example.of_tools) for example in examples)
    notes = []
    if any("mask" in (example.prediction.get("facts") or {}) for example in examples):
        notes.append("Masks: the true one is green, the answered one magenta, and yellow is where they agree.")
    odd = sum(example.score is not None and not _is_number(example.score) for example in examples)
    if odd:
        notes.append(f"{odd:,} scores are no numbers (NaN, infinity): such examples have no place in the order.")
    if kept < len(examples):
        notes.append(f"The page holds {kept:,} of {len(examples):,} examples; predictions.jsonl has all.")
    if pictured < with_media:
        notes.append(
            f"Images are in the page for {pictured:,} of {with_media:,} examples, the worst and best by turns, so that "
            "it stays small."
        )
    return notes


def _entry(example: Shown, length: int) -> dict[str, Any]:
    """The example as the page's script takes it, without its images."""
    prediction, of_tools = example.prediction, count()
    return {
        "n": prediction["row"],
        "id": str(prediction["id"])[:80],
        "q": asked(prediction)[:length],
        "t": _plain(prediction["answer"])[:length],
        "s": example.score,
        "g": list(example.tags),
        "a": [_answer(*answer, length, of_tools) for answer in example.answers],
        "o": as_json(_boxes(example)),
        "m": len(example.media),
    }


def _boxes(example: Shown) -> list[Any]:
    """The true boxes once, the answered ones of every answer."""
    drawn = []
    for number, (_, prediction, _) in enumerate(example.answers):
        boxes = boxes_of(prediction)
        drawn += [
            box._replace(kind=f"answer{number}" if box.kind == "answer" else "true")
            for box in boxes
            if box.kind == "answer" or number == 0
        ]
    return drawn


def _answer(
    label: str, prediction: Mapping[str, Any], is_right: bool | None, length: int, of_tools: Iterator[int]
) -> dict[str, Any]:
    scores = {name: value for name, value in prediction["scores"].items() if value is not None}
    said = said_last(prediction)
    answer = {
        "l": label,
        "t": None if said is None else said[:length],
        "r": is_right,
        "c": prediction["completion"][:length] + ("…" if len(prediction["completion"]) > length else ""),
        "s": " · ".join(f"{name} {value:.3g}" for name, value in scores.items()),
    }
    if "trajectory" in prediction:
        answer["p"] = steps(prediction["trajectory"], length, of_tools)
    samples = prediction.get("samples")
    return {**answer, "k": [str(part["predicted"])[:80] for part in samples[:32]]} if samples else answer


def _plain(answer: Any) -> str:
    return answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer, ensure_ascii=False)


def _add_pictures(entries: Mapping[int, dict[str, Any]], examples: Sequence[Shown], order: Iterable[int]) -> int:
    """Put thumbnails into the entries of the first examples until the budget is spent; how many got theirs."""
    spent = pictured = 0
    for number in order:
        example = examples[number]
        if number not in entries or not (example.media or example.of_tools):
            continue
        pictures, of_tools = _pictures(example), [_picture(medium) for medium in example.of_tools]
        size = sum(len(picture[0]) for picture in [*pictures, *of_tools] if picture)
        if spent + size > IMAGE_BYTES or pictured >= MOST_PICTURED:
            break
        entries[number]["i"] = pictures
        if of_tools:
            entries[number]["j"] = of_tools
        spent, pictured = spent + size, pictured + 1
    return pictured


def _pictures(example: Shown) -> list[list[Any] | None]:
    """Address, width and height of each image; None for one that cannot be read any more."""
    pictures: list[list[Any] | None] = []
    masked: list[list[Any]] = []
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
    return [*pictures, *masked]  # boxes are drawn by the number of the image


def _picture(medium: Any) -> list[Any] | None:
    try:
        image = open_image(image_ref(medium))
    except (OSError, ValueError):
        return None
    image.thumbnail((SIDE, SIDE))
    return _address(image)


def _masked(image: Image.Image, example: Shown) -> list[list[Any]]:
    """The image with the masks of each answer; none where the example has no mask."""
    found = [masks_of(prediction) for _, prediction, _ in example.answers]
    return [_address(paint_masks(image, *pair)) for pair in found if pair is not None]


def _address(image: Image.Image) -> list[Any]:
    """A data URI, width and height: PNG for tiny images, whose pixels are to be seen, otherwise JPEG."""
    file = io.BytesIO()
    is_tiny = max(image.size) <= TINY
    image.convert("RGB").save(file, format="PNG" if is_tiny else "JPEG", **({} if is_tiny else {"quality": 80}))
    kind = "png" if is_tiny else "jpeg"
    return [f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii"), *image.size]


def script_json(value: Any) -> Any:
    """JSON that can stand inside a script element."""
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
