"""What a page must not be able to do: read files, reach the network, hold up or outlive the others."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.envs.browsing import GREEN, HURRY, colors, is_spinning, needs_chromium, png, said, wait_until
from vlm_grpo.envs.browser.renderer import PageError, Renderer


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer(pages=2, seconds=60)
    yield renderer
    renderer.close()


PLACES = """<!DOCTYPE html><html><head>
<link rel="stylesheet" href="{at}s.css"><link rel="preload" as="image" href="{at}i.png">
<link rel="icon" href="{at}i.png"><link rel="prefetch" href="{at}p">
<link rel="preconnect" href="{at}"><link rel="dns-prefetch" href="{at}">
<link rel="manifest" href="{at}m"><link rel="modulepreload" href="{at}s.js"><base href="{at}">
<meta http-equiv="refresh" content="0;url={at}i.png">
<style>@import "{at}s.css"; @font-face {{ font-family: f; src: url({at}f.woff); }} p {{ font-family: f; }}
div {{ height: 20px; background: url({at}i.png); }} li {{ list-style-image: url({at}i.png); }}</style></head><body>
<p>text</p><div></div><li>x</li><img src="{at}i.png" srcset="{at}i.png 2x">
<picture><source srcset="{at}i.png"></picture>
<iframe src="{at}t.txt"></iframe><object data="{at}i.png"></object><embed src="{at}i.png"><video src="{at}v" autoplay>
</video><audio src="{at}v" autoplay></audio><input type="image" src="{at}i.png"><track src="{at}t">
<svg><image href="{at}i.png" width="9" height="9"/><use href="{at}i.svg#a"/></svg><script src="{at}s.js"></script>
<form id="form" action="{at}form"><input name="a"></form><a id="link" href="{at}link" ping="{at}ping">l</a>
<script>
const tell = (text) => document.body.append(` ${{text}}`);
const tries = [
  () => fetch("{at}t.txt").then((r) => r.text()).then(tell),
  () => {{ const x = new XMLHttpRequest(); x.open("GET", "{at}t.txt", false); x.send(); tell(x.responseText); }},
  () => navigator.sendBeacon("{at}b", "a"),
  () => new WebSocket("{at}w".replace("http", "ws")),
  () => new EventSource("{at}e"),
  () => {{ new Image().src = "{at}i.png"; }},
  () => new Worker("{at}s.js"),
  () => new Worker(URL.createObjectURL(new Blob(["importScripts('{at}s.js'); fetch('{at}t.txt')"]))),
  () => navigator.serviceWorker.register("{at}s.js"),
  () => import("{at}s.js"),
  () => window.open("{at}open"),
  () => document.getElementById("form").submit(),
  () => document.getElementById("link").click(),
  () => new RTCPeerConnection({{ iceServers: [{{ urls: "stun:127.0.0.1:{port}" }}] }}).createDataChannel("a"),
  () => {{ const f = document.createElement("iframe"); f.src = "{at}t.txt"; document.body.append(f); }},
  () => {{ location.href = "{at}location"; }},
];
for (const one of tries) try {{ one(); }} catch (error) {{}}
const end = Date.now() + 300;
while (Date.now() < end);
</script></body></html>"""


class Server:
    """A real server on this machine that counts connections and answers none, and datagrams."""

    def __init__(self) -> None:
        self.connections = 0
        self._stream = socket.create_server(("127.0.0.1", 0))
        self.port = self._stream.getsockname()[1]
        self._datagrams = socket.socket(type=socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", self.port))
        threading.Thread(target=self._dispatch, daemon=True).start()
        threading.Thread(target=self._hear, daemon=True).start()

    def _dispatch(self) -> None:
        while True:
            try:
                caller, _ = self._stream.accept()
            except OSError:
                return
            self.connections += 1
            caller.close()

    def _hear(self) -> None:
        while True:
            try:
                self._datagrams.recv(100)
            except OSError:
                return
            self.connections += 1


@needs_chromium
@pytest.mark.parametrize("is_netless", [True, False])
@pytest.mark.parametrize("javascript", [True, False])
def test_no_page_reaches_a_server_on_this_machine(is_netless: bool, javascript: bool):
    server = Server()
    renderer = Renderer(pages=1, seconds=60, is_netless=is_netless)
    try:
        for host in ("127.0.0.1", "localhost"):
            page = PLACES.format(at=f"http://{host}:{server.port}/", port=server.port)
            found = renderer.render(page, 300, 300, javascript=javascript)
            assert "text" in said(found)  # the page itself is drawn
        time.sleep(0.5)
        assert server.connections == 0
        socket.create_connection(("127.0.0.1", server.port)).close()
        assert wait_until(lambda: server.connections == 1)  # one that is made is counted
    finally:
        renderer.close()


@needs_chromium
@pytest.mark.parametrize("javascript", [True, False])
def test_no_page_reads_a_file(tmp_path: Path, renderer: Renderer, javascript: bool):
    (tmp_path / "i.png").write_bytes(png(GREEN))
    (tmp_path / "s.css").write_text("body, p { background: rgb(0, 128, 0) !important }")
    (tmp_path / "s.js").write_text("document.body.append('SECRET')")
    (tmp_path / "t.txt").write_text("SECRET")
    for folder in (f"file://{tmp_path}/", f"{tmp_path}/", f"view-source:file://{tmp_path}/"):
        found = renderer.render(PLACES.format(at=folder, port=9), 600, 600, javascript=javascript)
        assert "text" in said(found) and "SECRET" not in said(found)
        assert GREEN not in colors(found)
    address = f"data:image/png;base64,{base64.b64encode(png(GREEN)).decode()}"
    local = renderer.render(f"<img src='{address}'>", 600, 600, data_urls=True)
    assert GREEN in colors(local)  # the color of a picture that is shown


@needs_chromium
def test_the_browser_knows_no_secrets_of_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    renderer = Renderer(pages=1, seconds=60)
    try:
        renderer.render("x", 40, 30)
        assert b"sk-secret" not in Path(f"/proc/{renderer.browser_pid}/environ").read_bytes()
        listening = [c for c in psutil.Process(renderer.browser_pid).net_connections() if c.status == "LISTEN"]
        assert listening == []  # nor can anyone call it
    finally:
        renderer.close()


ABSURD = {
    "10,000 pixels wide": "<p>x<div style='width:10000px;height:10000px;background:linear-gradient(red,blue)'>",
    "deep": "<div>" * 20_000 + "x",
    "deep tables": "<table><tr><td>" * 3000,
    "many elements": "<i>x</i> " * 20_000,
    "a long word": "x" * 400_000,
    "huge letters": "<p style='font-size:99999px'>x",
    "blur": "<div style='filter:blur(99px);width:3000px;height:3000px;background:red'>" * 30,
    "a grid": "<div style='display:grid;grid-template-columns:repeat(9999,1px);grid-template-rows:repeat(9999,1px)'>x",
    "broken": "<!--<html><style><table><!DOCTYPE \0 \udcff <svg><math></p>",
    "entities": "&#x10ffff;&#0;&amp" * 1000,
    "variables": "<style>:root{--a:x;" + "".join(f"--a{n}:var(--a{n - 1})var(--a{n - 1});" for n in range(1, 40)) + "}",
    "has": "<style>" + ":has(*) " * 300 + "{color:red}</style>" + "<b>" * 2000,
}


@needs_chromium
@pytest.mark.slow
def test_absurd_pages_end_and_the_next_page_is_fine(renderer: Renderer):
    hasty = Renderer(pages=2, seconds=4)
    try:
        for name, page in ABSURD.items():
            started = time.monotonic()
            try:
                assert hasty.render(page, 200, 150).image().size == (200, 150)
            except PageError as error:
                assert "simpler" in str(error), name
            assert time.monotonic() - started < HURRY, name
        assert said(renderer.render("<p>fine", 200, 150)) == "fine"
    finally:
        hasty.close()


@needs_chromium
@pytest.mark.slow
def test_an_endless_script_is_ended_and_holds_no_other_page():
    renderer = Renderer(pages=2, seconds=15)
    try:
        renderer.render("warm", 60, 40)
        with ThreadPoolExecutor(1) as thread:
            endless = thread.submit(renderer.render, "<script>for(;;);</script>", 60, 40, javascript=True)
            assert said(renderer.render("other", 60, 40)) == "other"
            assert not endless.done()
            with pytest.raises(PageError, match="longer than 15 seconds"):
                endless.result()
        browser = psutil.Process(renderer.browser_pid)
        assert wait_until(lambda: not any(map(is_spinning, browser.children(recursive=True))))
        assert said(renderer.render("after", 60, 40)) == "after"
    finally:
        renderer.close()


@needs_chromium
def test_a_page_that_takes_too_much_memory_is_ended():
    renderer = Renderer(pages=1, seconds=60, memory=500)
    try:
        eat = "<script>const a = []; for (;;) a.push(new Uint8Array(1e7).fill(7))</script>"
        with pytest.raises(PageError, match="more than 500 MiB"):
            renderer.render(eat, 60, 40, javascript=True)
        assert said(renderer.render("after", 60, 40)) == "after"
    finally:
        renderer.close()
