"""Text that data, models and tools bring into a page stays text, wherever it stands in whatever page is written."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data.files import png, turns, write_jsonl
from tests.evaluation.test_comparison import write_run
from tests.evaluation.test_dashboard import groups_of, rollout
from vlm_grpo.cli.compare import main as compare
from vlm_grpo.cli.preview import main as preview
from vlm_grpo.evaluation.report.cards import CardAnswer, ExampleCard
from vlm_grpo.evaluation.report.chart import Curve
from vlm_grpo.evaluation.report.dashboard import ReportFolder
from vlm_grpo.evaluation.report.page import Section, evaluation_report, write_report

RUN = "parent.postMessage('PWNED','*')"
PAYLOADS = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</SCRIPT ><script>{RUN}</script>",
    f"<!--<script>{RUN}</script>-->",
    f"--><script>{RUN}</script>",
    f"<!--<script></script><script>{RUN}</script>",
    f"]]><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"</pre><script>{RUN}</script>",
    f"</option></select><script>{RUN}</script>",
    f"</svg><script>{RUN}</script>",
    f"<svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>",
    f"<img src=x onerror={RUN}>",
    f"<img src=x onerror=\"{RUN}\">",
    f"<IMG SRC=x OnErRoR={RUN}>",
    f"\"><img src=x onerror={RUN}>",
    f"'><img src=x onerror={RUN}>",
    f"` onmouseover={RUN} x=`",
    f"\" autofocus onfocus={RUN} x=\"",
    f"' autofocus onfocus={RUN} x='",
    f"<body onload={RUN}>",
    f"<iframe srcdoc=\"<script>parent.{RUN}</script>\"></iframe>",
    f"<iframe src=\"javascript:{RUN}\"></iframe>",
    f"<object data=\"javascript:{RUN}\"></object>",
    f"<embed src=\"javascript:{RUN}\">",
    f"<details open ontoggle={RUN}>",
    f"<video controls><source onerror={RUN}></video>",
    f"<input autofocus onfocus={RUN}>",
    f"<meta http-equiv=refresh content=\"0;url=javascript:{RUN}\">",
    f"<base href=\"javascript:{RUN}//\">",
    f"<link rel=stylesheet href=\"javascript:{RUN}\">",
    f"<a href=\"javascript:{RUN}\">x</a>",
    f"${{{RUN}}}",
    f"{{{{ ''.__class__ }}}}{{% raw %}}<script>{RUN}</script>",
    f"\u2028{RUN}\u2029//",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"&lt;script&gt;{RUN}&lt;/script&gt;<script>{RUN}</script>",
)  # fmt: skip
HARMLESS = tuple(f"text {number}" for number in range(len(PAYLOADS)))


def entry(number: int, text: str, image: str) -> dict[str, Any]:
    """A prediction of an episode that has the text wherever text can stand."""
    tool = {
        "role": "tool", "name": text, "arguments": {text: text}, "is_failure": True, "is_shown": True,
        "content": [{"type": "text", "text": text}],
    }  # fmt: skip
    return {
        "row": number, "data": f"d{number}", "id": text, "question": f"<image>{text}", "images": [image],
        "answer": {text: text} if number % 2 else text, "predicted": text if number % 3 else None, "completion": text,
        "scores": {"reward": number / 100, text: 0.5}, "group": text, "num_tokens": 1, "is_truncated": False,
        "episode": {"reward": 1.0}, "facts": {},
        "trajectory": [{"role": "user", "content": text}, {"role": "assistant", "turn": 1, "content": text}, tool],
        "samples": [{"predicted": text}, {"predicted": text}],
    }  # fmt: skip


def report_page(folder: Path, texts: tuple[str, ...]) -> Path:
    cards = [
        ExampleCard((png(),), text, text, (CardAnswer(text, text, True), CardAnswer(text, text, None)))
        for text in texts
    ]
    curve = Curve([0, 1], [0.5, 1.0], texts[0], [(1, 0.5, texts[1])])
    rows = [[text, text] for text in texts]
    sections = [Section(text, text, text) for text in texts]
    table = Section("t", header=(texts[0], "b"), rows=rows, cards=cards, curve=curve)
    return write_report(folder / "report.html", texts[0], texts[1], [*sections, table])


def evaluation_page(folder: Path, texts: tuple[str, ...]) -> Path:
    predictions = [entry(number, text, text) for number, text in enumerate(texts)]
    metric = "50.0 [40.0, 60.0]"
    evaluation = SimpleNamespace(
        predictions=predictions,
        task=texts[0],
        metrics={text: _Metric(metric) for text in texts},
        groups={text: {name: _Metric(metric) for name in texts} for text in texts},
    )
    return evaluation_report(folder / "evaluation.html", texts[1], evaluation, [])


class _Metric(str):
    count = 3


def compare_page(folder: Path, texts: tuple[str, ...]) -> Path:
    runs = []
    for name, gained in (("a", 0.0), ("b", 1.0)):
        run = write_run(folder / name, [gained] * len(texts), **{"note": texts[0], texts[1]: name})
        lines = [
            json.dumps({**entry(n, text, text), "scores": {"accuracy": gained}}) + "\n" for n, text in enumerate(texts)
        ]
        (run / "predictions.jsonl").write_text("".join(lines))
        runs.append(str(run))
    assert compare([*runs, "--output", str(folder / "compare.html")]) == 0
    return folder / "compare.html"


def live_page(folder: Path, texts: tuple[str, ...]) -> Path:
    report = ReportFolder(folder / "live")
    report.restore(0)
    for step, text in enumerate(texts, 1):
        message = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        rows = [{"prompt": message, "answer": {text: text}, "where": text}] * 2
        groups, files = groups_of(rollout(step, text=text, rows=rows, rewards={text: [0.0, 1.0]}), 2, {})
        report.add_group(groups[0], files)
        report.add_logs(step, {text: 1.0, f"rewards/{text}/mean": 0.5})
    report.write_page({"title": texts[0], "state": texts[1], texts[2]: texts[3]})
    return folder / "live" / "index.html"


def preview_page(folder: Path, texts: tuple[str, ...]) -> Path:
    images = folder / "<b onclick=1>"
    images.mkdir()
    rows = []
    for text in texts:
        name = text.replace("/", "_")[:200] + ".png"
        (images / name).write_bytes(png())
        rows.append({"id": text, "image": name, "conversations": turns(f"<image>{text}", text)})
    data = write_jsonl(folder / "a.jsonl", rows)
    words = ["--data_file_paths", data, "--image_folders", str(images), "--count", str(len(rows))]
    assert preview([*words, "--output", str(folder / "preview.html")]) == 0
    return folder / "preview.html"


PAGES: dict[str, Callable[[Path, tuple[str, ...]], Path]] = {
    "report": report_page,
    "evaluation": evaluation_page,
    "compare": compare_page,
    "live": live_page,
    "preview": preview_page,
}


class Tags(HTMLParser):
    """How often each tag occurs, with the names of its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found[(tag, *(name for name, _ in attributes))] += 1
        addresses = [value or "" for name, value in attributes if name in ("href", "src", "action", "data")]
        assert not any("javascript:" in address for address in addresses)


@pytest.mark.parametrize("kind", list(PAGES))
def test_no_text_becomes_an_element(kind: str, tmp_path: Path):
    """A page with payloads has the very elements of the same page with harmless text."""
    found = []
    for name, texts in (("evil", PAYLOADS), ("plain", HARMLESS)):
        (tmp_path / name).mkdir()
        page = PAGES[kind](tmp_path / name, texts)
        text = page.read_text(encoding="utf-8")
        assert "text 3" in text or "PWNED" in text  # it is shown
        tags = Tags(text).found
        tags.pop(("p", "class"), None)  # a warning where the right answer earns too little
        found.append(tags)
    assert found[0] == found[1]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_no_text_runs_in_a_browser(tmp_path: Path):
    """All pages in frames of one, which hears what a payload that runs would say; a page that lets it run is heard."""
    pages = {kind: make(tmp_path, PAYLOADS) for kind, make in PAGES.items()}
    pages["unsafe"] = tmp_path / "unsafe.html"
    pages["unsafe"].write_text("<p>" + PAYLOADS[17] + "</p>")
    frames = "".join(
        f'<iframe name="{kind}" src="{path.relative_to(tmp_path)}"></iframe>' for kind, path in pages.items()
    )
    (tmp_path / "all.html").write_text(
        "<script>const heard = []; addEventListener('message', (event) => {"
        "for (const frame of document.querySelectorAll('iframe'))"
        " if (frame.contentWindow === event.source) heard.push(frame.name); });"
        "addEventListener('load', () => setTimeout(() => {"
        " document.body.textContent = 'HEARD' + JSON.stringify(heard) + 'END'; }, 1500));</script>"
        f"<body>{frames}</body>"
    )
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'p'}"]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'all.html'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert json.loads(done.stdout.split("HEARD")[-1].split("END")[0]) == ["unsafe"]
