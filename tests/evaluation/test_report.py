from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from vlm_grpo.evaluation import Evaluation
from vlm_grpo.evaluation.chart import Curve, curve_svg, save_picture, smooth
from vlm_grpo.evaluation.metrics import mean_with_interval
from vlm_grpo.evaluation.report import Answer, Card, Section, answer_of, evaluation_report, thumbnail, write_report

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
    card = Card(
        (png(),), "what?", "7", (Answer("before", "<script>alert(1)</script>", False), Answer("after", "7", True))
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
    cards = [Card((png(),), "", str(digit), (Answer("before", "1", False),)) for digit in range(3)]
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
        (1.0, "x", Answer("answer", "x", True)),
        (0.0, "x", Answer("answer", "x", False)),
        (None, "x", Answer("answer", "x", None)),
        (0.0, None, Answer("answer", "(no answer) raw", False)),
    ],
)
def test_answer_of_says_what_was_answered(score: float | None, predicted: str | None, expected: Answer):
    assert answer_of(prediction(0, score, predicted), "accuracy") == expected


def test_evaluation_report_shows_the_worst_and_the_best_once(tmp_path: Path):
    scores = [1.0] * 20 + [0.0, None]
    predictions = [prediction(row, score) for row, score in enumerate(scores)]
    evaluation = Evaluation("default", {"accuracy": mean_with_interval([*scores[:-1]])}, predictions)
    rows = [{"images": [png()]} for _ in scores]
    text = evaluation_report(tmp_path / "r.html", "title", evaluation, rows).read_text(encoding="utf-8")
    worst, best = text.split("Best examples")
    assert (worst.count('class="card"'), best.count('class="card"')) == (12, 9)  # 21 were scored
    assert (worst.count('class="wrong"'), best.count('class="wrong"')) == (1, 0)
    assert worst.index('class="wrong"') < worst.index('class="right"')
    assert "<image>" not in text
    assert "21</td>" in text
