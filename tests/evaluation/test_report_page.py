from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from vlm_grpo.evaluation import Evaluation
from vlm_grpo.evaluation.aggregate import mean_with_interval
from vlm_grpo.evaluation.report.cards import CardAnswer, ExampleCard
from vlm_grpo.evaluation.report.chart import Curve, curve_svg, save_picture, smooth
from vlm_grpo.evaluation.report.page import (
    Section,
    answer_of,
    evaluation_report,
    is_correct,
    ranking_score,
    thumbnail,
    write_report,
)

CURVE = Curve([1, 2, 3, 4], [0.0, 0.5, 0.5, 1.0], "reward", marks=((0, 0.25, "start"), (4, 1.0, "<end>")))


def png(color: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


class Addresses(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name in ("src", "href") and value]
        assert tag not in ("script", "link", "iframe")


def test_write_report_holds_everything_itself_and_escapes_text(tmp_path: Path):
    card = ExampleCard(
        (png(),),
        "what?",
        "7",
        (CardAnswer("before", "<script>alert(1)</script>", False), CardAnswer("after", "7", True)),
    )
    sections = [
        Section("Table", header=("a", "b"), rows=[["x", "1 < 2"]]),
        Section("Curve", curve=CURVE),
        Section("Cards", code="run --this", cards=[card]),
    ]
    text = write_report(tmp_path / "report.html", "A <title>", "lead", sections).read_text(encoding="utf-8")
    page = Addresses()
    page.feed(text)
    assert len(page.found) == 1
    kind, data = page.found[0].split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (255, 0, 0)
    assert "A &lt;title&gt;" in text
    assert "1 &lt; 2" in text
    assert '<div class="wrong">before: <b>&lt;script&gt;' in text
    assert '<div class="right">after: <b>7</b>' in text
    assert "<pre>run --this</pre>" in text
    assert text.count("<svg") == 1


def test_curve_svg_puts_shares_where_they_belong():
    svg = curve_svg(CURVE)
    ElementTree.fromstring(svg)  # well formed
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    # the plot spans x 52..650 for steps 0..4 and y 14..260 for shares 1..0
    assert circles == [("52.0", "198.5"), ("650.0", "14.0")]
    raw, mean = re.findall(r'points="([^"]+)"', svg)
    assert raw.split() == ["201.5,260.0", "351.0,137.0", "500.5,137.0", "650.0,14.0"]
    assert mean.split()[0] == "201.5,137.0"  # the window of 9 covers all four: their mean is 0.5
    assert "&lt;end&gt;" in svg


def test_smooth_averages_neighbours():
    assert smooth([0.0, 3.0, 6.0, 0.0], window=3) == [1.5, 3.0, 3.0, 3.0]


def test_save_picture_draws_a_png(tmp_path: Path):
    cards = [ExampleCard((png(),), "", str(digit), (CardAnswer("before", "1", False),)) for digit in range(3)]
    image = Image.open(save_picture(tmp_path / "picture.png", "title", CURVE, cards))
    assert image.format == "PNG"
    assert image.width > 1000
    assert (255, 0, 0) in {color for _, color in image.convert("RGB").getcolors(1 << 20)}  # the cards' images


def test_thumbnail_shrinks_only_large_images():
    assert Image.open(io.BytesIO(thumbnail(png(size=(448, 112))))).size == (224, 56)
    assert Image.open(io.BytesIO(thumbnail(png(size=(10, 20))))).size == (10, 20)


def prediction(row: int, score: float | None, predicted: str | None = "x") -> dict:
    return {
        "row": row,
        "question": "<image>which?",
        "answer": "y",
        "predicted": predicted,
        "scores": {"accuracy": score},
        "completion": "raw",
        "num_tokens": 1,
        "is_truncated": False,
    }


@pytest.mark.parametrize(
    ("score", "predicted", "expected"),
    [
        (1.0, "x", CardAnswer("answer", "x", True)),
        (0.0, "x", CardAnswer("answer", "x", False)),
        (None, "x", CardAnswer("answer", "x", None)),
        (0.0, None, CardAnswer("answer", "(no answer) raw", False)),
    ],
)
def test_answer_of_says_what_was_answered(score: float | None, predicted: str | None, expected: CardAnswer):
    assert answer_of(prediction(0, score, predicted), "accuracy") == expected


def page_data(text: str) -> list[dict]:
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_evaluation_report_has_every_example_with_metrics_and_groups(tmp_path: Path):
    scores = [1.0] * 20 + [0.0, None]
    predictions = [{**prediction(row, score), "id": row, "images": [None]} for row, score in enumerate(scores)]
    predictions = [{**entry, "group": "even" if entry["row"] % 2 == 0 else "odd"} for entry in predictions]
    metric = mean_with_interval([*scores[:-1]])
    groups = {"even": {"accuracy": metric}, "odd": {"accuracy": metric}}
    evaluation = Evaluation("default", {"accuracy": metric}, predictions, groups)
    rows = [{"images": [png()]} for _ in scores]
    text = evaluation_report(tmp_path / "r.html", "title", evaluation, rows).read_text(encoding="utf-8")
    entries = page_data(text)
    assert [entry["s"] for entry in entries] == scores
    assert [entry["a"][0]["r"] for entry in entries] == [True] * 20 + [False, None]
    assert all(entry["i"][0][0].startswith("data:image/png") for entry in entries)
    assert "<image>" not in entries[0]["q"]
    assert "21</td>" in text and "<td>odd</td><td>11</td>" in text
    assert 'id="tag"' in text and "<option>even</option>" in text


def test_examples_are_ranked_by_the_overlap_behind_a_threshold():
    assert ranking_score({"iou@0.5": 1.0, "iou": 0.6}) == "iou"
    assert ranking_score({"accuracy": 1.0, "iou": 0.6}) == "accuracy"
    assert [is_correct({"iou@0.5": 1.0}), is_correct({"accuracy": 0.0}), is_correct({"mask_iou": 0.9})] == [
        True,
        False,
        None,
    ]
