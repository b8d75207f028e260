"""Scripted episodes of visual_code in a real browser, and pages that try to be paid for nothing."""

from __future__ import annotations

import base64
import io
import re
from random import Random
from typing import Any

import pytest
from PIL import Image

from vlm_grpo.envs import find_environment, visual_code
from vlm_grpo.envs.browser.chromium import BINARY
from vlm_grpo.envs.browser.renderer import BrowserError, find_chromium, shared_renderer
from vlm_grpo.envs.environment import ToolError, tool_schema, tools_of
from vlm_grpo.envs.visual_code import VisualCode, extract_html
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.synthetic.web_pages import draw_page, page_example, page_html, page_image

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium")
DESIGN = """<!DOCTYPE html><html><head><style>
body { margin: 0; background: #f4f1ea; font: 16px Arial, sans-serif } header { background: #264653; color: #fff;
padding: 12px 20px; font-size: 22px } main { padding: 20px } .card { background: #fff; border: 1px solid #bbb;
padding: 14px; margin-bottom: 14px } button { background: #e76f51; color: #fff; border: 0; padding: 10px 26px }
</style></head><body><header>Harbor Cafe</header><main><h1>Breakfast menu</h1>
<div class="card">Porridge with berries, 6 euros</div><div class="card">Two eggs on toast, 8 euros</div>
<button>Order now</button></main></body></html>"""
NEAR = DESIGN.replace("#e76f51", "#d4603f").replace("padding: 14px", "padding: 13px")
OTHER = "<body><h2>Something else</h2><p>Here is a page about trains</p><table border=1><tr><td>1<td>2</table>"


def fenced(page: str) -> str:
    return f"Here it is.\n```html\n{page}\n```\n"


def reward(page: str, **row: Any) -> float:
    environment = VisualCode(width=480, height=360)
    environment.reset(**(row or {"html": DESIGN}))
    environment.finish(fenced(page))
    return environment.get_reward()


def png_address(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def design() -> Image.Image:
    return shared_renderer().render(DESIGN, 480, 360).image()


@needs_chromium
def test_an_episode_looks_at_a_page_improves_it_and_is_paid_for_the_last():
    environment = find_environment("visual_code")(width=480, height=360, max_renders=2)
    picture, task = environment.reset(html=DESIGN)
    assert picture["image"].size == (480, 360)
    assert "480 pixels wide and 360 pixels high" in task["text"] and "2 times" in task["text"]
    seen, note = environment.render(OTHER)
    assert seen["image"].size == (480, 360) and note["text"] == "Render 1 of 2."
    better, _ = environment.render(DESIGN)
    assert better["image"].tobytes() == picture["image"].tobytes()
    with pytest.raises(ToolError, match="All 2 renders are used"):
        environment.render(DESIGN)
    environment.finish("Done.")  # no page: the last render counts
    assert environment.get_reward() == 1
    assert environment.metrics() == {"renders": 2, "ssim": 1, "color": 1, "text": 1, "layout": 1}


@needs_chromium
def test_the_last_turn_counts_before_a_render():
    environment = VisualCode(width=480, height=360)
    environment.reset(html=DESIGN)
    environment.render(DESIGN)
    environment.finish(fenced(OTHER))
    assert environment.get_reward() < 0.4
    assert environment.metrics()["renders"] == 1


@needs_chromium
def test_rewards_order_pages_as_a_person_would():
    halfway = DESIGN.replace("Two eggs on toast, 8 euros", "Something").replace("<button>Order now</button>", "")
    values = [reward(page) for page in (DESIGN, NEAR, halfway, OTHER, "<p></p>")]
    assert values == sorted(values, reverse=True) and len(set(values)) == 5
    assert values[0] == 1 and values[1] > 0.85 and 0.3 < values[2] < 0.85 and values[3] < 0.3 and values[4] == 0


@needs_chromium
def test_the_same_look_written_otherwise_is_worth_the_same():
    other = DESIGN.replace('<div class="card">', '<section><div><p class="card">').replace(
        "</div>", "</p></div></section>"
    )
    other = other.replace(".card {", "p { margin: 0 } .card {")
    assert reward(other) == 1


@needs_chromium
def test_pages_that_cheat_earn_next_to_nothing():
    address = png_address(design())
    text = re.sub(r"<style>.*</style>|<[^>]*>", " ", DESIGN, flags=re.DOTALL)
    pages = {
        "empty": "<html></html>",
        "one color": '<body style="background:#f4f1ea">',
        "the picture": f'<body style="margin:0"><img src="{address}" width="480" height="360">',
        "the picture behind": f"<body style=\"margin:0;height:360px;background:url('{address}')\">",
        "the picture in svg": f'<body style="margin:0"><svg width="480" height="360"><image href="{address}"/></svg>',
        "invisible": DESIGN.replace("<style>", "<style>body { opacity: 0 }"),
        "all of it on white": DESIGN.replace("</style>", "* { color: #fff !important; background: #fff !important; "
                                             "border-color: #fff !important }</style>"),
        "all of it below": DESIGN.replace("<body>", "<body><div style='height:400px'></div>"),
        "all of it under a cover": DESIGN + "<div style='position:fixed;inset:0;background:#f4f1ea'></div>",
        "a thousand boxes": "<div style='border:1px solid'></div>" * 1000,
        "tiny text": f"<p style='font-size:1px'>{text}</p>",
    }  # fmt: skip
    earned = {name: reward(page) for name, page in pages.items()}
    assert {name: value for name, value in earned.items() if value > 0.07} == {}
    assert reward(f"<p>{text}</p>") < 0.3  # all words without their looks
    assert reward(f"<p>{text}</p>" * 10) < 0.15  # saying them again costs


@needs_chromium
def test_a_mere_picture_of_a_design_is_compared_as_a_picture():
    environment = VisualCode()
    (task,) = environment.reset(images=[ImageRef(design())], question="q", answer=None)
    assert "480 pixels wide and 360 pixels high" in task["text"]
    environment.finish(fenced(DESIGN))
    assert environment.get_reward() == 1
    assert environment.metrics() == {"renders": 0, "ssim": 1, "color": 1}
    for page in ("", OTHER, '<body style="background:#f4f1ea">', f'<img src="{png_address(design())}">'):
        environment.reset(images=[design()])
        environment.finish(fenced(f"<html>{page}"))
        assert environment.get_reward() < 0.05


@needs_chromium
def test_a_row_with_picture_and_page_shows_the_picture_and_compares_the_page():
    environment = VisualCode()
    record = Record(0, "q", None, extra={"html": DESIGN})
    blocks = environment.reset(images=[design()], record=record)
    assert [block["type"] for block in blocks] == ["text"]
    environment.finish(fenced(DESIGN))
    assert environment.get_reward() == 1 and environment.metrics()["text"] == 1


@needs_chromium
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (480, 360)),
        ({"width": 240}, (240, 180)),
        ({"height": 90}, (120, 90)),
        ({"width": 50, "height": 60}, (50, 60)),
    ],
)
def test_a_viewport_is_the_designs_or_the_one_asked_for(options: dict[str, int], size: tuple[int, int]):
    environment = VisualCode(**options)
    environment.reset(images=[design()])
    seen, _ = environment.render(DESIGN)
    assert seen["image"].size == size


@needs_chromium
def test_large_pictures_are_scaled_down_and_pages_without_one_have_a_size():
    environment = VisualCode()
    environment.reset(images=[Image.new("RGB", (3200, 400))])
    assert environment.render("x")[0]["image"].size == (1600, 200)
    environment.reset(html=DESIGN)
    assert environment.render("x")[0]["image"].size == (1024, 768)


@needs_chromium
def test_reset_forgets_the_last_episode():
    environment = VisualCode(width=480, height=360, max_renders=1)
    environment.reset(html=DESIGN)
    environment.render(DESIGN)
    environment.finish("")
    assert environment.get_reward() == 1
    environment.reset(html=OTHER)
    environment.finish("nothing")
    assert environment.get_reward() == 0
    assert environment.metrics() == {"renders": 0, "ssim": 0, "color": 0, "text": 0, "layout": 0}
    environment.render(OTHER)  # the budget is new
    assert environment.get_reward() == 1


@needs_chromium
def test_scripts_run_only_with_the_option():
    script = "<body><script>document.body.style.background = 'rgb(0, 128, 0)'</script>"
    for javascript, color in ((False, (255, 255, 255)), (True, (0, 128, 0))):
        environment = VisualCode(width=60, height=40, javascript=javascript)
        (_, task) = environment.reset(html="<p>x")
        assert ("scripts" in task["text"]) is not javascript
        assert environment.render(script)[0]["image"].getpixel((50, 30)) == color


@needs_chromium
def test_weights_choose_what_is_paid():
    page = DESIGN.replace("#264653", "#ffffff")
    rewards = {}
    for name in ("ssim", "color", "text", "layout"):
        environment = VisualCode(width=480, height=360, weights={name: 2})
        environment.reset(html=DESIGN)
        environment.finish(fenced(page))
        rewards[name] = environment.get_reward()
        assert rewards[name] == pytest.approx(environment.metrics()[name])
    assert len(set(rewards.values())) > 2


@needs_chromium
def test_a_page_that_cannot_be_rendered_is_told_and_earns_nothing():
    environment = VisualCode(width=60, height=40)
    environment.reset(html=DESIGN)
    with pytest.raises(ToolError, match=r"The page was not rendered: it has 600,000 characters"):
        environment.render("x" * 600_000)
    environment.finish("")
    assert environment.get_reward() == 0
    assert environment.metrics()["renders"] == 1


@needs_chromium
def test_the_designs_own_pictures_are_shown_and_the_pages_are_not():
    page = f'<body style="margin:0"><img src="{png_address(Image.new("RGB", (30, 30), (0, 128, 0)))}">'
    environment = VisualCode(width=60, height=40)
    picture, _ = environment.reset(html=page)
    assert picture["image"].getpixel((15, 15)) == (0, 128, 0)
    assert environment.render(page)[0]["image"].getpixel((15, 15)) != (0, 128, 0)


@needs_chromium
def test_a_row_without_design_and_bad_weights_are_errors():
    record = Record(0, "q", None, where="data.jsonl:3")
    with pytest.raises(ValueError, match=r"data.jsonl:3: visual_code: a row needs an image"):
        VisualCode().reset(record=record)
    with pytest.raises(ValueError, match=r"data.jsonl:3: 'html' must be the text of a page, got 5"):
        VisualCode().reset(html=5, record=record)
    for weights in ({"sim": 1}, {"ssim": -1}, {"ssim": 0}, {}):
        with pytest.raises(ValueError, match="weights must be numbers of ssim, color, text, layout"):
            VisualCode(weights=weights)


@needs_chromium
def test_the_only_tool_is_render_and_it_has_a_schema():
    tools = tools_of(VisualCode())
    assert list(tools) == ["render"]
    function = tool_schema("render", tools["render"])["function"]
    assert function["parameters"]["required"] == ["html"]
    assert function["parameters"]["properties"]["html"]["type"] == "string"


def test_without_a_browser_the_error_comes_before_any_episode(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(BINARY, "no-such-browser")
    with pytest.raises(BrowserError, match="apt-get install chromium"):
        VisualCode()


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("```html\n<p>a</p>\n```", "<p>a</p>"),
        ("```HTML\n<p>a</p>", "<p>a</p>"),  # cut off
        ("first\n```html\n<p>a</p>\n```\nbetter\n```\n<p>b</p>\n```", "<p>b</p>"),
        ("```html\n<p>a</p>\n```\nRun it with\n```\npython server\n```", "<p>a</p>"),
        ("So: <html><p>a</html> as asked", "<html><p>a</html>"),
        ("<!doctype HTML><p>a", "<!doctype HTML><p>a"),
        ("<think>```html\n<p>no</p>\n```</think>I give up", None),
        ("a < b and <b>c</b>", None),
        ("", None),
    ],
)
def test_page_in_finds_the_last_page(text: str, page: str | None):
    assert extract_html(text) == page


@needs_chromium
def test_toy_pages_are_pictures_of_their_html():
    for number in range(4):
        example = page_example(Random(number), number, 224)
        assert example.images[0].size == (224, 224)
        environment = VisualCode()
        environment.reset(images=list(example.images), html=example.columns["html"])
        environment.finish(fenced(example.answer))
        assert environment.get_reward() == 1
        again = page_example(Random(number), number, 224)
        assert again.images[0].tobytes() == example.images[0].tobytes() and again.answer == example.answer
    kinds = [page_example(Random(0), number, 112).question for number in range(3)]
    assert ["interface design" in kinds[0], "wireframe" in kinds[1], "screenshot" in kinds[2]] == [True] * 3


@needs_chromium
def test_toy_pages_look_alike_drawn_and_rendered():
    from vlm_grpo.synthetic.web_pages import _page

    for number in range(4):
        page = _page(Random(number), 336, "wireframe" if number == 1 else "screenshot")
        environment = VisualCode()
        environment.reset(images=[draw_page(page, 336)])
        environment.finish(fenced(page_html(page)))
        assert environment.get_reward() > 0.6
        assert environment.metrics()["color"] > 0.8


def test_toy_pages_need_no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path):
    for name in ("PATH", "HOME", "PLAYWRIGHT_BROWSERS_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv(BINARY, raising=False)
    example = page_example(Random(0), 0, 200)
    assert example.images[0].size == (200, 200) and len(example.images[0].getcolors(10_000)) > 5
    assert "<!DOCTYPE html>" in example.answer
    assert visual_code.TAG.search(example.answer)
    assert callable(page_image)
