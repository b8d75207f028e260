"""A browser tab that renders one HTML page at a time to an image and its layout.

There is no server: the browser's request for PAGE is answered with the text, all other requests are blocked. The rights
of the page are restricted by a policy that Chromium enforces (Content Security Policy, with its sandbox): no files, no
network, no frames, no forms, no windows, and scripts only with `javascript`.
"""

from __future__ import annotations

import base64
import contextlib
import time
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from typing import Any, NamedTuple, TypeVar

from vlm_grpo.boxes import Box
from vlm_grpo.envs.browser.chromium import BrowserError
from vlm_grpo.envs.browser.devtools import Chromium
from vlm_grpo.records import JsonObject

PAGE = "https://page.invalid/"
SET_UP_SECONDS = 30.0
DATA = "data:"  # images and fonts embedded in the page
# Computed styles that make a box visible, in the order of `Style`.
STYLES = (
    "visibility",
    "background-color",
    "background-image",
    "border-top-style",
    "border-right-style",
    "border-bottom-style",
    "border-left-style",
    "box-shadow",
)
CLEAR = ("rgba(0, 0, 0, 0)", "transparent")
REPLACED = ("IMG", "INPUT", "TEXTAREA", "SELECT", "BUTTON", "SVG", "CANVAS", "VIDEO", "METER", "PROGRESS")
MAX_NODES = 5000  # maximum number of lines, and of boxes, of a page
WHOLE = ("HTML", "BODY")  # their background is that of the page, regardless of their box


class PageError(ValueError):
    """A page cannot be rendered; the message is for its author."""


class RenderJob(NamedTuple):
    """A page to render; results are deterministic."""

    html: str
    width: int
    height: int
    javascript: bool = False
    data_urls: bool = False


Result = TypeVar("Result")


class Line(NamedTuple):
    """The text of one line and its box in pixels."""

    text: str
    box: Box


class Screenshot(NamedTuple):
    """A PNG file, its lines of text, and its visible boxes: blocks of text and painted elements."""

    png: bytes
    lines: tuple[Line, ...]
    boxes: tuple[Box, ...]


class Tab:
    """A tab with its own process, cookies and storage. Not thread-safe."""

    def __init__(self, browser: Chromium) -> None:
        """Open the tab.

        Raises:
            BrowserError, TimeoutError: the browser does not do so.
        """
        self.browser = browser
        self._crashed: Future[None] = Future()
        self._loaded: Future[None] = Future()
        self._job: RenderJob | None = None
        self._deadline = time.monotonic() + SET_UP_SECONDS
        self._context = self._ask("Target.createBrowserContext", top=True)["browserContextId"]
        where = {"url": "about:blank", "browserContextId": self._context, "width": 800, "height": 600}
        target = self._ask("Target.createTarget", where, top=True)["targetId"]
        attached = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True}, top=True)
        self._session = attached["sessionId"]
        browser.listen(self._session, self._on_event)
        for method in ("Page.enable", "Inspector.enable", "Animation.enable"):
            self._ask(method)
        self._ask("Fetch.enable", {"patterns": [{"urlPattern": "*"}]})
        self._ask("Animation.setPlaybackRate", {"playbackRate": 0})  # equal pages, equal pixels

    def draw(self, job: RenderJob, seconds: float) -> Screenshot:
        """Return a screenshot of the loaded page.

        Raises:
            PageError: the page exceeds the limits of time or memory.
            BrowserError: the browser reports an error or has exited.
        """
        self._deadline = time.monotonic() + seconds
        try:
            self._load(job)
            picture = self._ask("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True})["data"]
            snapshot = self._ask("DOMSnapshot.captureSnapshot", {"computedStyles": list(STYLES)})
        except TimeoutError:
            raise PageError(f"it took longer than {seconds:g} seconds to render; make the page simpler") from None
        return Screenshot(base64.b64decode(picture), *read_snapshot(snapshot))

    def close(self, seconds: float = 5.0) -> None:
        """End its process.

        Raises:
            BrowserError, TimeoutError: the browser does not do so.
        """
        self.browser.listen(self._session, None)
        self.browser.call("Target.disposeBrowserContext", {"browserContextId": self._context}, seconds=seconds)

    def _load(self, job: RenderJob) -> None:
        size = {"width": job.width, "height": job.height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", size)
        self._job, self._loaded = job, Future()
        answer = self._ask("Page.navigate", {"url": PAGE})
        if answer.get("errorText"):
            raise PageError(f"it did not load: {answer['errorText']}")
        self._wait(self._loaded)

    def _ask(self, method: str, parameters: JsonObject | None = None, *, top: bool = False) -> JsonObject:
        return self._wait(self.browser.send(method, parameters, "" if top else self._session))

    def _wait(self, future: Future[Result]) -> Result:
        """Return a future's result if it arrives before the deadline and before the page crashes."""
        waited: tuple[Future[Any], ...] = (future, self._crashed)
        wait(waited, max(0.0, self._deadline - time.monotonic()), FIRST_COMPLETED)
        if future.done():
            return future.result()
        if self._crashed.done():
            raise PageError(f"it crashed, or took more than {self.browser.memory} MiB; make the page simpler")
        raise TimeoutError

    def _on_event(self, method: str, parameters: JsonObject) -> None:
        with contextlib.suppress(InvalidStateError, BrowserError):
            if method == "Fetch.requestPaused":
                self._answer(parameters)
            elif method == "Page.frameStoppedLoading":
                self._loaded.set_result(None)
            elif method == "Inspector.targetCrashed":
                self._crashed.set_result(None)

    def _answer(self, request: JsonObject) -> None:
        """Serve the page once; block all other requests, including a second one for the page."""
        job, number = self._job, request["requestId"]
        if job is None or request["request"]["url"] != PAGE:
            self.browser.send("Fetch.failRequest", {"requestId": number, "errorReason": "Aborted"}, self._session)
            return
        self._job = None
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy(job)}
        reply = {
            "requestId": number,
            "responseCode": 200,
            "responseHeaders": [{"name": name, "value": value} for name, value in headers.items()],
            "body": base64.b64encode(job.html.encode("utf-8", "replace")).decode(),
        }
        self.browser.send("Fetch.fulfillRequest", reply, self._session)


def policy(job: RenderJob) -> str:
    """Return the Content Security Policy of a page."""
    data = DATA if job.data_urls else "'none'"
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", f"img-src {data}", f"font-src {data}"]
    rules += ["form-action 'none'", "base-uri 'none'", "webrtc 'block'"]
    if job.javascript:
        return "; ".join([*rules, "script-src 'unsafe-inline' 'unsafe-eval'", "sandbox allow-scripts"])
    return "; ".join([*rules, "sandbox"])


def read_snapshot(snapshot: JsonObject) -> tuple[tuple[Line, ...], tuple[Box, ...]]:
    """Return the lines of text and the boxes of a page, from DOMSnapshot.captureSnapshot."""
    strings, document = snapshot["strings"], snapshot["documents"][0]
    layout, names = document["layout"], document["nodes"]["nodeName"]
    scrolled = document.get("scrollOffsetX", 0), document.get("scrollOffsetY", 0)
    boxes = []
    for node, text, style, bounds in zip(
        layout["nodeIndex"], layout["text"], layout["styles"], layout["bounds"], strict=True
    ):
        name = strings[names[node]].upper()
        has_text = text >= 0 and strings[text].strip() != ""
        shows = has_text or (name not in WHOLE and _is_painted(name, style, strings))
        if shows and bounds[2] > 0 and bounds[3] > 0:
            boxes.append(_box(bounds, scrolled))
    return tuple(_lines(document, strings, scrolled)[:MAX_NODES]), tuple(dict.fromkeys(boxes))[:MAX_NODES]


def _is_painted(name: str, style: list[int], strings: list[str]) -> bool:
    """Return whether an element is visible apart from its content."""
    if not style:
        return False  # text nodes have no style
    visibility, color, picture, *borders, shadow = (strings[number] for number in style)
    if visibility != "visible":
        return False
    has_edges = any(border not in ("none", "hidden") for border in borders)
    return name in REPLACED or color not in CLEAR or picture != "none" or shadow != "none" or has_edges


def _lines(document: JsonObject, strings: list[str], scrolled: tuple[float, float]) -> list[Line]:
    """Return all lines of text; the browser counts in UTF-16 units."""
    layout, found = document["layout"], document["textBoxes"]
    lines = []
    for at, bounds, start, length in zip(
        found["layoutIndex"], found["bounds"], found["start"], found["length"], strict=True
    ):
        units = strings[layout["text"][at]].encode("utf-16-le", "surrogatepass")
        text = units[2 * start : 2 * (start + length)].decode("utf-16-le", "replace")
        if text.strip():
            lines.append(Line(text, _box(bounds, scrolled)))
    return lines


def _box(bounds: list[float], scrolled: tuple[float, float]) -> Box:
    """Return the position in the image; a page can scroll itself, for instance to a field with autofocus."""
    left, top, width, height = bounds
    x, y = left - scrolled[0], top - scrolled[1]
    return Box(x, y, x + width, y + height)
