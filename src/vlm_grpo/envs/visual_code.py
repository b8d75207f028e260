"""Environment `visual_code`: the model writes a page that looks like the image of a design."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlm_grpo.answer_parser import strip_thinking
from vlm_grpo.envs.environment import Environment, ToolError
from vlm_grpo.records import Block, Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from vlm_grpo.envs.browser.renderer import Render
    from vlm_grpo.envs.similarity import Similarity

FENCED = re.compile(r"```[ \t]*(?:html)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
BARE = re.compile(r"(?:<!doctype\s+html|<html[\s>])(?:.*</html\s*>|.*)", re.DOTALL | re.IGNORECASE)
TAG = re.compile(r"<[a-zA-Z!]")
SIZE = (1024, 768)  # viewport of a design without an image
MAX_LENGTH = 1600  # pixels; larger images of designs are scaled down
SIMILARITIES = ("ssim", "color", "text", "layout")


class VisualCode(Environment):
    """A design to reproduce; the model can render pages, and the last page is compared with the design.

    The design is the row's `html`, which is rendered here, or else its first image, whose text and boxes are unknown.
    The page is taken from the last turn, in a fence or as plain <html>; without one, it is the last rendered page. It
    must not contain images; otherwise an image of the design would be the best page.
    """

    def __init__(
        self,
        *,
        max_renders: int = 3,
        width: int | None = None,
        height: int | None = None,
        javascript: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Configure the episodes.

        Args:
            max_renders: maximum number of renders per episode.
            width: width of the viewport in pixels; default: the design's, or 1024 without an image.
            height: likewise, default 768.
            javascript: run the scripts of pages.
            weights: weights of `ssim`, `color`, `text` and `layout` in the reward; omitted ones are 0. By default
                each is a quarter.

        Raises:
            ValueError: a weight is unknown, or none is above zero.
            BrowserError: no Chromium is installed.
        """
        from vlm_grpo.envs.browser.renderer import check_browser
        from vlm_grpo.envs.similarity import WEIGHTS

        check_browser()
        self._weights = _validate_weights(WEIGHTS if weights is None else weights)
        self._max_renders, self._javascript = max_renders, javascript
        self._width, self._height = width, height
        self._design: Render | None = None
        self._page: str | None = None
        self._similarity: Similarity | None = None
        self._renders = 0
        self._begin(None, SIZE)

    def reset(self, **row: object) -> list[Block]:
        """Start an episode and return the task, with a picture of the design if the row has none."""
        image, html = _image(row), _html(row)
        self._begin(image, self._viewport(image))
        if html is not None:
            self._design = self._render(html, data_urls=True)
        elif self._design is None:
            raise ValueError(f"{_where(row)}visual_code: a row needs an image of the design or its 'html', got neither")
        image_blocks = [] if image is not None else [{"type": "image", "image": self._design.image()}]
        return [*image_blocks, {"type": "text", "text": self._task()}]

    def render(self, html: str) -> list[Block]:
        """Render a page and look at it.

        Args:
            html: The whole page, HTML with its CSS.
        """
        if self._renders >= self._max_renders:
            raise ToolError(f"All {self._max_renders} renders are used. Answer with the final page.")
        self._renders += 1
        self._page = html
        picture = self._rendered(html)
        text = f"Render {self._renders} of {self._max_renders}."
        return [{"type": "image", "image": picture.image()}, {"type": "text", "text": text}]

    def finish(self, text: str) -> None:
        """Take the page of the last turn, if it has one."""
        self._page = extract_html(text) or self._page

    def get_reward(self) -> float:
        """Return the similarity of page and design, 0 to 1; 0 without a page that can be rendered."""
        from vlm_grpo.envs.similarity import page_similarity, weighted_mean

        if self._page is None or self._design is None:
            return 0.0
        try:
            page = self._rendered(self._page)
        except ToolError:
            return 0.0
        self._similarity = page_similarity(self._design, page)
        return weighted_mean(self._similarity, self._weights)

    def metrics(self) -> dict[str, float]:
        """Return the similarities that apply, and the number of renders."""
        renders = {"renders": float(self._renders)}
        if self._similarity is None:
            return {**renders, **dict.fromkeys(SIMILARITIES, 0.0)}
        return {**renders, **{name: value for name, value in self._similarity._asdict().items() if value is not None}}

    def _begin(self, image: Image.Image | None, size: tuple[int, int]) -> None:
        from vlm_grpo.envs.browser.renderer import Render

        self._size = size
        self._design = None if image is None else Render.of_image(_resize(image, size))
        self._page = None
        self._similarity = None
        self._renders = 0

    def _viewport(self, image: Image.Image | None) -> tuple[int, int]:
        if image is None:
            return self._width or SIZE[0], self._height or SIZE[1]
        if self._width and self._height:
            return self._width, self._height
        scale = min(1.0, MAX_LENGTH / max(image.size))
        if self._width or self._height:
            scale = self._width / image.width if self._width else (self._height or 0) / image.height
        return max(1, round(image.width * scale)), max(1, round(image.height * scale))

    def _task(self) -> str:
        width, height = self._size
        scripts = "" if self._javascript else " scripts,"
        looks = f" You can look at a page with render, {self._max_renders} times at most." if self._max_renders else ""
        return (
            f"Your page is rendered {width} pixels wide and {height} pixels high, without{scripts} image files and "
            f"network.{looks} Answer with the whole page, HTML with its CSS, in a ```html fence."
        )

    def _rendered(self, html: str) -> Render:
        """Render a page of the model; errors are worded for the model."""
        from vlm_grpo.envs.browser.renderer import PageError

        try:
            return self._render(html)
        except PageError as error:
            raise ToolError(f"The page was not rendered: {error}.") from error

    def _render(self, html: str, *, data_urls: bool = False) -> Render:
        from vlm_grpo.envs.browser.renderer import shared_renderer

        return shared_renderer().render(html, *self._size, javascript=self._javascript, data_urls=data_urls)


def extract_html(text: str) -> str | None:
    """Return the last page in a text: in a fence, or plain from <html> or its doctype on; None without one."""
    text = strip_thinking(text)
    fenced = [page.strip() for page in FENCED.findall(text) if TAG.search(page)]
    if fenced:
        return fenced[-1]
    bare = BARE.search(text)
    return bare[0].strip() if bare else None


def _validate_weights(weights: Mapping[str, float]) -> dict[str, float]:
    unknown = [name for name in weights if name not in SIMILARITIES]
    if unknown or any(weight < 0 for weight in weights.values()) or sum(weights.values()) <= 0:
        expected = f"numbers of {', '.join(SIMILARITIES)}, none below zero and not all zero"
        raise ValueError(f"visual_code: weights must be {expected}, got {dict(weights)!r}")
    return dict(weights)


def _image(row: Row) -> Image.Image | None:
    from vlm_grpo.data.images import image_ref, open_image

    images = row.get("images") or []
    return open_image(image_ref(images[0])) if images else None


def _html(row: Row) -> str | None:
    """Return the page of the design: a column of the row, or of its record's `extra`."""
    html = row.get("html") or getattr(row.get("record"), "extra", {}).get("html")
    if html is not None and not isinstance(html, str):
        raise ValueError(f"{_where(row)}'html' must be the text of a page, got {html!r:.80}")
    return html


def _where(row: Row) -> str:
    where = getattr(row.get("record"), "where", "")
    return f"{where}: " if where else ""


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size)
