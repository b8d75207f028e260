from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_grpo.evaluation.report import samples
from vlm_grpo.evaluation.report.overlay import as_json, boxes_of, masks_of, paint_masks
from vlm_grpo.evaluation.report.samples import SamplesPage, SampleView, SummaryTable, order_by_interest, write_page
from vlm_grpo.masks import encode_mask, write_rle

PAGE = SamplesPage("A <title>", "lead", [SummaryTable("Numbers", ("a", "b"), [["x", "1 < 2"]])], "accuracy")


def prediction(row: int, score: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "row": row, "id": f"id{row}", "question": "<image>which?", "answer": "y", "predicted": f"answer {row}",
        "scores": {"accuracy": score}, "completion": "raw", "images": [], **more,
    }  # fmt: skip


def shown(row: int, score: float | None = 1.0, media: Any = (), tags: Any = (), **more: Any) -> SampleView:
    entry = prediction(row, score, **more)
    return SampleView(entry, [("answer", entry, None if score is None else score >= 0.5)], score, media, tags)


def png(color: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def data(text: str) -> list[dict[str, Any]]:
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_the_page_holds_everything_itself_and_escapes_text(tmp_path: Path):
    evil = "</script><script>alert(1)</script>\u2028&"
    example = shown(3, media=[png()], question=f"<image>{evil}", predicted=evil, completion=evil)
    text = write_page(tmp_path / "p.html", PAGE, [example]).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2  # the data and the page's own
    assert "A &lt;title&gt;" in text and "1 &lt; 2" in text
    (entry,) = data(text)
    assert entry["q"] == entry["a"][0]["t"] == entry["a"][0]["c"] == evil
    address, width, height = entry["i"][0]
    assert (width, height) == (8, 8)
    assert Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).getpixel((0, 0)) == (255, 0, 0)
    assert not re.search(r"(src|href)=", text)


def test_by_worth_takes_the_worst_and_the_best_by_turns():
    scores = [0.5, None, 0.9, 0.1, 0.7]
    assert order_by_interest([shown(n, score) for n, score in enumerate(scores)]) == [3, 2, 0, 4, 1]
    assert order_by_interest([]) == []


def test_the_page_stays_small_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "IMAGE_BYTES", 2000)
    monkeypatch.setattr(samples, "MAX_EXAMPLES", 40)
    image = Image.frombytes("RGB", (64, 64), bytes(range(256)) * 48)
    examples = [shown(n, n / 50, media=[image], completion="x" * 10_000) for n in range(50)]
    text = write_page(tmp_path / "p.html", PAGE, examples).read_text(encoding="utf-8")
    entries = data(text)
    pictured = [entry["n"] for entry in entries if "i" in entry]
    size = sum(len(entry["i"][0][0]) for entry in entries if "i" in entry)
    assert size <= 2000 and pictured and set(pictured) <= {0, 1, 2, 3, 47, 48, 49}
    assert [entry["n"] for entry in entries] == [*range(20), *range(30, 50)]  # the middle is left out
    assert f"{len(pictured)} of 50 examples have images" in text
    assert "The page has 40 of 50 examples" in text
    assert len(entries[0]["a"][0]["c"]) == samples.TEXT_LENGTH + 1


def test_five_thousand_examples_fit(tmp_path: Path):
    picture = Image.effect_noise((320, 240), 80).convert("RGB")
    examples = [shown(n, n % 7 / 7, media=[picture], completion="word " * 100) for n in range(5000)]
    page = write_page(tmp_path / "p.html", PAGE, examples)
    assert len(data(page.read_text(encoding="utf-8"))) == 5000
    assert page.stat().st_size < samples.IMAGE_BYTES + samples.TEXT_BYTES


def test_an_image_that_is_gone_is_no_error(tmp_path: Path):
    text = write_page(tmp_path / "p.html", PAGE, [shown(0, media=["/gone.png", None])]).read_text(encoding="utf-8")
    assert data(text)[0]["i"] == [None, None]


FACTS = {"image_sizes": [[200, 100]], "processed_sizes": [[112, 56]], "answer_space": "resized"}


def test_boxes_are_drawn_where_they_are_on_the_image():
    """True: pixels of the 200 x 100 original. Answer: pixels of the 112 x 56 image that the model saw."""
    entry = prediction(
        0, facts=FACTS, answer={"bbox_2d": [20, 10, 100, 60]}, predicted='{"bbox_2d": [56, 28, 140, 42]}'
    )
    drawn = boxes_of(entry)
    assert [(box.image, box.kind) for box in drawn] == [(0, "true"), (0, "answer")]
    assert drawn[0].box == pytest.approx((100, 100, 500, 600))
    assert drawn[1].box == pytest.approx((500, 500, 1250, 750))
    assert as_json(drawn) == [[0, "true", 100, 100, 400, 500, ""], [0, "answer", 500, 500, 500, 250, ""]]  # cut off
    assert boxes_of({**entry, "predicted": None})[0].kind == "true"
    assert boxes_of(prediction(0, facts=FACTS, predicted="[1, 2, 3, 4]")) == []  # the truth is no box
    assert boxes_of(prediction(0)) == []


def test_detections_are_drawn_with_labels():
    evidence = {"boxes": [{"truth": [["cup", 0, 0, 56, 28]], "found": [["cup", 0.25, 0, 0, 112, 56]]}]}
    drawn = boxes_of(prediction(0, facts=FACTS, evidence=evidence))
    assert [(box.kind, box.label) for box in drawn] == [("true", "cup"), ("answer", "cup 0.25")]
    assert drawn[0].box == pytest.approx((0, 0, 500, 500))
    assert drawn[1].box == pytest.approx((0, 0, 1000, 1000))


def test_masks_are_painted_in_three_colors():
    import numpy as np

    true, given = np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    true[:, :100], given[:, 50:150] = True, True
    facts = {**FACTS, "answer_space": "thousand", "mask": write_rle(true)}
    entry = prediction(0, facts=facts, predicted=json.dumps(encode_mask(given, codec="polygon")))
    found = masks_of(entry)
    assert (found[1] == true).all() and (found[0] == given).mean() > 0.99
    painted = paint_masks(Image.new("RGB", (100, 50)), *found)
    colors = [painted.getpixel((x, 25)) for x in (10, 37, 60, 90)]
    assert colors == [(9, 92, 55), (127, 117, 30), (120, 15, 70), (0, 0, 0)]  # green, yellow, magenta over black
    assert masks_of({**entry, "predicted": None})[0] is None
    assert masks_of(prediction(0)) is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_filters_work_in_a_browser(tmp_path: Path):
    examples = [
        shown(n, n / 30 if n else None, tags=["even" if n % 2 == 0 else "odd"], media=[png()] if n < 5 else [],
              completion="has seven" if n in (7, 17, 18) else "plain")
        for n in range(31)
    ]  # fmt: skip
    text = write_page(tmp_path / "p.html", PAGE, examples).read_text(encoding="utf-8")
    script = """<script>
      const row = (node) => Number(node.textContent.split(" ")[1]);
      const rows = () => [...document.querySelectorAll(".head span:first-child")].map(row);
      const result = {}, state = () => [by("count").textContent, rows()];
      const set = (id, value) => { by(id).value = value; by(id).dispatchEvent(new Event("input")); };
      result.start = state();
      more(); result.more = state()[1].length;
      set("order", "best"); result.best = state();
      set("text", "seven ID1"); result.text = state();
      set("text", ""); set("low", "0.9"); set("high", "0.95"); result.range = state();
      set("low", ""); set("high", ""); set("tag", "odd"); result.tag = state()[0];
      result.overflow = document.documentElement.scrollWidth - innerWidth;
      document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
    </script></body>"""
    (tmp_path / "driven.html").write_text(text.replace("</body>", script), encoding="utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=500,900"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'driven.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    result = json.loads(re.search("RESULT(.*)END", done.stdout)[1])
    assert result["start"][0] == "31 of 31 examples"
    assert result["start"][1][:3] == [1, 2, 3] and len(result["start"][1]) >= 24
    assert result["more"] == 31
    assert result["best"][1][:2] == [30, 29]
    assert result["text"] == ["2 of 31 examples", [18, 17]]
    assert result["range"] == ["2 of 31 examples", [28, 27]]
    assert result["tag"] == "15 of 31 examples"
    assert result["overflow"] <= 0
