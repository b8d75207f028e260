"""Render HTML pages in one Chromium, several at a time; identical pages are rendered once.

Pages are not trusted: they have no access to files and network, and scripts only with `javascript`. Each page has
limits of time, memory and length, and one that exceeds them only delays the others briefly.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from vlm_grpo.boxes import Box
from vlm_grpo.envs.browser.chromium import BrowserError, BrowserGone, check_browser, find_chromium
from vlm_grpo.envs.browser.devtools import Chromium
from vlm_grpo.envs.browser.tab import Line, PageError, RenderJob, Screenshot, Tab

__all__ = [
    "BrowserError",
    "Line",
    "PageError",
    "Render",
    "Renderer",
    "check_browser",
    "find_chromium",
    "shared_renderer",
]

logger = logging.getLogger(__name__)

MAX_HTML_LENGTH = 500_000  # characters
MAX_SIDE = 4096  # pixels of a viewport
ATTEMPTS = 3  # the browser may have been killed by another page


@dataclass(frozen=True)
class Render:
    """An image with its lines of text and boxes in pixels; None for an image that was not rendered.

    Boxes are blocks of text and elements that are visible themselves: a background, an edge, a control.
    """

    png: bytes
    lines: tuple[Line, ...] | None = None
    boxes: tuple[Box, ...] | None = None

    @classmethod
    def of_image(cls, image: Image.Image) -> Render:
        """Return a render with only an image."""
        file = io.BytesIO()
        image.convert("RGB").save(file, format="PNG", compress_level=1)
        return cls(file.getvalue())

    def image(self) -> Image.Image:
        """Return the image, decoded as RGB."""
        with Image.open(io.BytesIO(self.png)) as image:
            return image.convert("RGB")


class Renderer:
    """Renders pages for any number of threads; the browser is started on first use and replaced after a crash."""

    def __init__(
        self,
        *,
        pages: int | None = None,
        seconds: float = 20.0,
        memory: int = 1024,
        max_cached: int = 256,
        is_netless: bool = True,
    ) -> None:
        """Say how, without starting anything.

        Args:
            pages: how many are rendered at a time; others wait for their turn. By default half as many as there are
                cores, two to eight.
            seconds: what one page may take; generous, or a busy machine would cost a good page its reward.
            memory: MiB that each process of the browser may take.
            max_cached: number of renders in the cache.
            is_netless: run the browser without network devices, if the system permits it.
        """
        self.seconds, self.max_cached = seconds, max_cached
        self.count = 0  # pages rendered, without cache hits
        self._memory, self._is_netless = memory, is_netless
        self._browser: Chromium | None = None
        self._lock = threading.Lock()
        self._cache: OrderedDict[RenderJob, Future[Render]] = OrderedDict()
        half = (os.cpu_count() or 1) // 2
        self._workers = ThreadPoolExecutor(pages or min(8, max(2, half)), "render")
        self._thread_state = threading.local()  # the tab of each worker

    def render(
        self, html: str, width: int, height: int, *, javascript: bool = False, data_urls: bool = False
    ) -> Render:
        """Render a page in a viewport.

        Args:
            html: the text of the page, with its CSS.
            width: width of the viewport in pixels.
            height: height of the viewport in pixels; the rest of the page is cut off.
            javascript: run its scripts, still without network.
            data_urls: load images and fonts that are embedded as data: URLs.

        Raises:
            PageError: the page is too long, or exceeds the limits of time or memory.
            ValueError: the viewport is empty or too large.
            BrowserError: no browser is installed, or it does not start.
        """
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise ValueError(f"a viewport must be 1 to {MAX_SIDE} pixels wide and high, got {width} x {height}")
        if len(html) > MAX_HTML_LENGTH:
            raise PageError(f"it has {len(html):,} characters, more than the maximum of {MAX_HTML_LENGTH:,}")
        job = RenderJob(html, width, height, javascript, data_urls)
        try:
            return self._submit(job).result()
        except BaseException:
            with self._lock:
                self._cache.pop(job, None)  # errors are not cached
            raise

    @property
    def browser_pid(self) -> int | None:
        """Return the process id of the browser; None if it has not been started."""
        browser = self._browser
        return None if browser is None else browser.pid

    def close(self) -> None:
        """Terminate the browser. The next call of `render` starts a new one."""
        with self._lock:
            browser, self._browser = self._browser, None
        if browser is not None:
            browser.close()

    def _submit(self, job: RenderJob) -> Future[Render]:
        """Return the render of a page, shared by all callers that request the same page."""
        with self._lock:
            if job not in self._cache:
                self._cache[job] = self._workers.submit(self._draw, job)
            self._cache.move_to_end(job)
            while len(self._cache) > self.max_cached:
                self._cache.popitem(last=False)
            return self._cache[job]

    def _draw(self, job: RenderJob) -> Render:
        for _ in range(ATTEMPTS):
            try:
                shot = self._take_screenshot(job)
                self.count += 1
                return Render(*shot)
            except (BrowserGone, TimeoutError) as error:
                logger.warning("restarting the browser: %s", error)
            except BrowserError as error:
                if self._browser is None:
                    raise  # the browser could not be started
                logger.warning("retrying a page: %s", error)
        raise PageError(f"it could not be rendered in {ATTEMPTS} attempts; make the page simpler")

    def _take_screenshot(self, job: RenderJob) -> Screenshot:
        """Return a screenshot by this worker's tab; a tab that failed or ran a script is not reused."""
        tab: Tab | None = getattr(self._thread_state, "tab", None)
        self._thread_state.tab = None
        if tab is None or not tab.browser.is_running:
            tab = self._open()
        try:
            shot = tab.draw(job, self.seconds)
        except PageError:
            if not _close_tab(tab):
                raise BrowserGone("it hangs") from None  # the page may be valid
            raise
        except BaseException:
            _close_tab(tab)
            raise
        if job.javascript:
            _close_tab(tab)
        else:
            self._thread_state.tab = tab
        return shot

    def _open(self) -> Tab:
        browser = self._running()
        try:
            return Tab(browser)
        except TimeoutError:
            browser.close()  # it hangs
            raise

    def _running(self) -> Chromium:
        with self._lock:
            if self._browser is None or not self._browser.is_running:
                old, self._browser = self._browser, None
                if old is not None:
                    old.close()
                self._browser = Chromium(memory=self._memory, is_netless=self._is_netless)
            return self._browser


def _close_tab(tab: Tab) -> bool:
    """Close a tab; return False if the browser hangs (and is terminated) or has already exited."""
    try:
        tab.close()
    except TimeoutError:
        tab.browser.close()
    except BrowserError:
        pass
    return tab.browser.is_running


def shared_renderer(**options: Any) -> Renderer:
    """Return the renderer of this process for these options; its browser is terminated with the process."""
    return _renderer(os.getpid(), tuple(sorted(options.items())))


@lru_cache
def _renderer(process: int, options: tuple[tuple[str, Any], ...]) -> Renderer:
    renderer = Renderer(**dict(options))

    def end() -> None:
        if os.getpid() == process:  # a fork inherits the exit handlers of its parent
            with suppress(OSError):
                renderer.close()

    atexit.register(end)
    return renderer
