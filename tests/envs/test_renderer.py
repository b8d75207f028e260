"""Pages in a real browser: what is drawn, and what happens when the browser breaks."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.envs.browsing import GREEN, HURRY, WHITE, colors, is_alive, needs_chromium, png, said, wait_until
from vlm_grpo.boxes import Box
from vlm_grpo.envs.browser import chromium
from vlm_grpo.envs.browser.renderer import BrowserError, PageError, Render, Renderer, find_chromium, shared_renderer

BLOCK = '<!DOCTYPE html><body style="margin:0"><div style="position:absolute;left:20px;top:30px;{}">{}</div>'


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer(pages=2, seconds=60)
    yield renderer
    renderer.close()


@needs_chromium
def test_a_page_becomes_a_picture_with_its_text_and_boxes(renderer: Renderer):
    page = BLOCK.format("width:60px;height:40px;background:rgb(200,10,20)", "")
    found = renderer.render(page + '<p style="position:absolute;left:0;top:100px;margin:0">a 😀 b<br>two</p>', 200, 150)
    image = found.image()
    assert image.size == (200, 150) and image.mode == "RGB"
    assert [image.getpixel(at) for at in ((19, 30), (20, 30), (79, 69), (80, 69))] == [
        WHITE, (200, 10, 20), (200, 10, 20), WHITE,
    ]  # fmt: skip
    assert [line.text for line in found.lines] == ["a 😀 b", "two"]
    first, second = (line.box for line in found.lines)
    assert (first.x1, second.x1) == (0, 0) and 100 <= first.y1 < first.y2 <= second.y1 + 2
    assert found.boxes[0] == Box(20, 30, 80, 70)
    assert len(found.boxes) == 3  # the block and two pieces of text, not the body and not the empty <p> around them
    ink = image.crop(tuple(round(side) for side in first)).convert("L").getextrema()
    assert ink[0] < 60  # the text is where its box says


@needs_chromium
def test_only_what_shows_is_a_box(renderer: Renderer):
    page = "<body><div><section></section></div><div style='border:1px solid'>{}</div><input>".format("<b></b>" * 9)
    hidden = "<div style='visibility:hidden;background:red;height:9px'></div><div style='display:none'>x</div>"
    assert len(renderer.render(page + hidden, 100, 100).boxes) == 2  # the edge and the field


@needs_chromium
def test_a_page_that_scrolls_itself_has_its_text_where_it_is_seen(renderer: Renderer):
    page = "<body style='margin:0'><div style='height:3000px'></div><p id=p>end</p><script>p.scrollIntoView()</script>"
    found = renderer.render(page, 200, 150, javascript=True)
    assert said(found) == "end"
    assert 0 <= found.lines[0].box.y1 < 150


@needs_chromium
def test_equal_pages_are_rendered_once_also_at_the_same_time():
    renderer = Renderer(pages=2, seconds=60)
    try:
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda _: renderer.render("<p>same", 80, 60), range(6)))
        assert renderer.count == 1 and len(set(map(id, found))) == 1
        assert renderer.render("<p>same", 80, 60) is found[0]
        renderer.render("<p>same", 81, 60)
        renderer.render("<p>same", 80, 60, javascript=True)
        assert renderer.count == 3
    finally:
        renderer.close()


@needs_chromium
def test_only_so_many_renders_are_kept():
    renderer = Renderer(pages=1, seconds=60, max_cached=2)
    try:
        for text in "abca":
            renderer.render(text, 40, 30)
        assert renderer.count == 4
        renderer.render("c", 40, 30)
        assert renderer.count == 4
    finally:
        renderer.close()


@needs_chromium
def test_pages_of_many_threads_are_not_mixed_up(renderer: Renderer):
    wanted = [(10 * n, 255 - 10 * n, n) for n in range(16)]
    pages = [f"<body style='background:rgb{color}'>{n}" for n, color in enumerate(wanted)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda page: renderer.render(page, 64, 48), pages))
    assert [render.image().getpixel((60, 40)) for render in found] == wanted
    assert [said(render) for render in found] == [str(n) for n in range(16)]


@needs_chromium
def test_animations_stand_still(renderer: Renderer):
    move = "<style>@keyframes m{from{left:0}to{left:150px}}div{position:absolute;width:30px;height:30px;background:red;"
    page = move + "animation:m .7s linear infinite alternate}</style><div></div>"
    first = renderer.render(page, 200, 60)
    time.sleep(0.3)
    assert renderer.render(page + " ", 200, 60).png == first.png
    assert first.image().getpixel((5, 15)) == (255, 0, 0)


@needs_chromium
def test_pictures_inside_the_text_need_permission(renderer: Renderer):
    address = f"data:image/png;base64,{base64.b64encode(png(GREEN)).decode()}"
    pages = [
        f'<img src="{address}">',
        f"<body style='background:url({address})'>",
        f'<svg width="50" height="50"><image href="{address}" width="50" height="50"/></svg>',
        f'<object data="{address}"></object><embed src="{address}"><iframe src="{address}"></iframe>',
        f'<input type="image" src="{address}"><video poster="{address}"></video>',
        f"<style>p::before{{content:url({address})}}li{{list-style-image:url({address})}}</style><p><li>x",
        f"<iframe srcdoc='<img src=\"{address}\">'></iframe>",
    ]
    for page in pages:
        assert GREEN not in colors(renderer.render(page, 400, 300))
    assert GREEN in colors(renderer.render(pages[0], 400, 300, data_urls=True))


@needs_chromium
def test_scripts_run_only_when_asked(renderer: Renderer):
    page = "<p id=p>before</p><script>p.textContent = 'after'</script><noscript>none</noscript><b onclick=x()>.</b>"
    assert said(renderer.render(page, 100, 80)) == "before\nnone\n."
    assert said(renderer.render(page, 100, 80, javascript=True)) == "after\n."


@needs_chromium
def test_nothing_is_left_from_one_page_to_the_next(renderer: Renderer):
    keep = "localStorage.a = 1;|document.cookie = 'a=1';|window.name = 'kept';"
    look = "s += localStorage.a;|s += document.cookie;|s += name;|document.body.append(`[${s}]`);"
    keep, look = (" ".join(f"try {{ {part} }} catch {{}}" for part in script.split("|")) for script in (keep, look))
    renderer.render(f"<body><script>{keep}</script>", 90, 70, javascript=True)
    for number in range(2):  # both tabs
        page = f"<body>{number}<script>let s = ''; {look}</script>"
        assert said(renderer.render(page, 90, 70, javascript=True)).replace("\n", "") == f"{number}[]"


def test_pages_and_viewports_have_a_greatest_size():
    renderer = Renderer()
    with pytest.raises(PageError, match="50,000,000 characters"):
        renderer.render("x" * 50_000_000, 100, 100)
    for size in ((0, 10), (10, 0), (5000, 10), (10, 10**9)):
        with pytest.raises(ValueError, match="1 to 4096 pixels"):
            renderer.render("x", *size)


@needs_chromium
def test_a_browser_that_is_killed_is_replaced(renderer: Renderer):
    renderer.render("before", 60, 40)
    old = renderer.browser_pid
    os.kill(old, signal.SIGKILL)
    assert said(renderer.render("after", 60, 40)) == "after"
    assert renderer.browser_pid != old


@needs_chromium
@pytest.mark.slow
def test_a_browser_that_hangs_is_replaced_and_no_page_blamed():
    renderer = Renderer(pages=1, seconds=8)
    try:
        renderer.render("before", 60, 40)
        old = renderer.browser_pid
        os.kill(old, signal.SIGSTOP)
        assert said(renderer.render("<p>after" + "<!-- long -->" * 30_000, 60, 40)) == "after"
        assert renderer.browser_pid != old
    finally:
        renderer.close()


@needs_chromium
def test_close_leaves_no_process_and_no_folder():
    renderer = Renderer(pages=2, seconds=60)
    renderer.render("x", 60, 40)
    browser = psutil.Process(renderer.browser_pid)
    family, folder = [browser, *browser.children(recursive=True)], renderer._browser._profile.folder
    assert len(family) > 2 and folder.is_dir()
    renderer.close()
    assert wait_until(lambda: not [one for one in family if is_alive(one)])
    assert not folder.exists()
    assert said(renderer.render("again", 60, 40)) == "again"
    renderer.close()


@needs_chromium
@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), 9)"])
def test_the_browser_ends_with_the_process_that_uses_it(ending: str):
    code = (
        "import os; from vlm_grpo.envs.browser.renderer import shared_renderer; renderer = shared_renderer(pages=1); "
        f"renderer.render('x', 40, 30); print(renderer.browser_pid, flush=True); {ending}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HURRY)
    pid = int(done.stdout)
    assert wait_until(lambda: not psutil.pid_exists(pid) or not is_alive(psutil.Process(pid)))


def test_a_process_has_one_renderer_for_each_setting():
    assert shared_renderer() is shared_renderer()
    assert shared_renderer(pages=3) is not shared_renderer()


def test_without_a_browser_the_error_says_how_to_install_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PLAYWRIGHT_BROWSERS_PATH", raising=False)
    monkeypatch.delenv(chromium.BINARY, raising=False)
    assert find_chromium() is None
    with pytest.raises(BrowserError, match="apt-get install chromium"):
        Renderer().render("x", 40, 30)
    own = tmp_path / ".cache" / "ms-playwright" / "chromium-1200" / "chrome-linux" / "chrome"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert find_chromium() == str(own)
    monkeypatch.setenv(chromium.BINARY, "no-such-browser")
    with pytest.raises(BrowserError, match=r"VLM_GRPO_CHROMIUM: .*'no-such-browser'"):
        Renderer().render("x", 40, 30)


def test_a_program_that_is_no_browser_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(chromium.BINARY, shutil.which("false"))
    with pytest.raises(BrowserError, match=r"false did not start: .*install one"):
        Renderer(seconds=5).render("x", 40, 30)


def test_a_mere_picture_has_no_text():
    image = Image.new("RGBA", (3, 2), (0, 128, 0, 255))
    render = Render.of_image(image)
    assert render.image().getcolors() == [(6, GREEN)]
    assert render.lines is None and render.boxes is None
