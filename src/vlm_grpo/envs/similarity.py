"""Visual similarity of a page and a design: structure, color, text, layout (0 to 1 each) and their weighted mean.

As a reward, it must not be easy to exploit. Structure and color measure the gain over the best page
of one color, so that an empty page has 0. Text and boxes are matched one to one, and surplus ones cost as much as
missing ones; they count only if they are visible in the image. Identical pages have exactly 1.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlm_grpo.boxes import Box, iou

if TYPE_CHECKING:
    import numpy as np

    from vlm_grpo.envs.browser.renderer import Line, Render

WEIGHTS = {"ssim": 0.25, "color": 0.25, "text": 0.25, "layout": 0.25}
# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", section III.B.
SIGMA, RADIUS = 1.5, 5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SHORT_SIDES = (256, 64)  # pixels; images are downscaled to both: one shows letters, the other only blocks
GRAYS = range(0, 256, 15)  # gray levels of the blank pages used as a baseline
BLOCKS = 16  # color blocks along the longer side
MIN_CONTRAST = 3.0  # standard deviation of gray levels below which text is invisible
MAX_DISTANCE = 0.25  # of the diagonal; more distant words get no credit for their position
MAX_MATCHES = 200  # maximum number of matched boxes (largest first), and of occurrences of a word
MAX_WORDS = 2000
BACKGROUND_AREA = 0.98  # of the image; larger boxes are the background
# In scripts without spaces between words, each letter is a word.
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Similarity(NamedTuple):
    """Four similarities from 0 to 1; None if the design lacks the feature, e.g. text in an image."""

    ssim: float
    color: float
    text: float | None
    layout: float | None


class Word(NamedTuple):
    """A word, its center in pixels, and the contrast of its line in gray levels."""

    text: str
    x: float
    y: float
    contrast: float


def page_similarity(design: Render, page: Render) -> Similarity:
    """Return the similarity of a page to a design of the same size in pixels.

    Raises:
        ValueError: the sizes differ.
    """
    import numpy as np

    target, rendered = (np.asarray(render.image(), dtype=np.float32) for render in (design, page))  # (H, W, 3)
    if target.shape != rendered.shape:
        sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (target.shape, rendered.shape))
        raise ValueError(f"a design and a page must have the same size in pixels, got {sizes}; render the page in it")
    gray, other = _gray(target), _gray(rendered)
    text = layout = None
    if design.lines is not None and page.lines is not None:
        text = text_similarity(visible_words(design.lines, gray), visible_words(page.lines, other), gray.shape)
    if design.boxes is not None and page.boxes is not None:
        layout = layout_similarity(visible_boxes(design.boxes, gray), visible_boxes(page.boxes, other))
    return Similarity(structure_similarity(gray, other), color_similarity(target, rendered), text, layout)


def weighted_mean(similarity: Similarity, weights: Mapping[str, float] = WEIGHTS) -> float:
    """Return the weighted mean of the measures that apply; 0 if none of them has a weight."""
    pairs = [(weights.get(name, 0.0), value) for name, value in similarity._asdict().items() if value is not None]
    total_weight = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total_weight if total_weight > 0 else 0.0


def _gray(pixels: np.ndarray) -> np.ndarray:
    """Return the luma, (H, W), 0 to 255 (ITU-R BT.601)."""
    import numpy as np

    return pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def structure_similarity(target: np.ndarray, rendered: np.ndarray) -> float:
    """Return the SSIM of two grayscale images (H, W), relative to the best uniform page.

    The mean of two resolutions: the authors' 256 pixels, and one that tolerates offsets of a pixel or two.
    """
    factors = {max(1, round(min(target.shape) / side)) for side in SHORT_SIDES}
    gains = []
    for factor in factors:
        small, other = (_block_means(picture[..., None], factor)[..., 0] for picture in (target, rendered))
        gains.append(_relative_gain(ssim(small, other), max(_ssim_of_grays(small))))
    return sum(gains) / len(gains)


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean SSIM, -1 to 1, of two grayscale images (H, W) of 0 to 255 (Wang et al. 2004, equation 13).

    Windows are Gaussian and entirely inside the image, unless the image is smaller.
    """
    mean, spread = _moments(one)
    mean_other, spread_other = _moments(other)
    shared = _blurred(one * other) - mean * mean_other
    ratio = (2 * mean * mean_other + C1) * (2 * shared + C2)
    return float((ratio / ((mean**2 + mean_other**2 + C1) * (spread + spread_other + C2))).mean())


def _ssim_of_grays(picture: np.ndarray) -> Iterable[float]:
    """Return the SSIM of an image with uniform ones, whose variance and covariance are zero."""
    mean, spread = _moments(picture)
    for gray in GRAYS:
        yield float(((2 * mean * gray + C1) * C2 / ((mean**2 + gray**2 + C1) * (spread + C2))).mean())


def _moments(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance in the window around each pixel."""
    mean = _blurred(picture)
    return mean, _blurred(picture**2) - mean**2


def _blurred(picture: np.ndarray) -> np.ndarray:
    import numpy as np
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(picture.astype(np.float64), SIGMA, mode="nearest", radius=RADIUS)
    edge = RADIUS if min(picture.shape) > 2 * RADIUS else 0
    return blurred[edge : picture.shape[0] - edge, edge : picture.shape[1] - edge]


def color_similarity(target: np.ndarray, rendered: np.ndarray) -> float:
    """Return one minus the difference of block colors, relative to the best uniform page.

    Images are (H, W, 3); the median of the blocks is the uniform color that differs least.
    """
    import numpy as np

    side = max(1, round(max(target.shape) / BLOCKS))
    blocks = _block_means(target, side)
    difference = np.abs(blocks - _block_means(rendered, side)).mean() / 255
    blank = np.abs(blocks - np.median(blocks, axis=(0, 1))).mean() / 255
    return _relative_gain(1 - float(difference), 1 - float(blank))


def _block_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return mean colors of blocks of `side` pixels, (rows, columns, channels); blocks at the edges may be smaller."""
    import numpy as np

    if side == 1:
        return pixels
    rows, columns = (np.arange(0, length, side) for length in pixels.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    heights, widths = np.diff([*rows, pixels.shape[0]]), np.diff([*columns, pixels.shape[1]])
    return sums / np.outer(heights, widths)[..., None]


def _relative_gain(value: float, blank: float) -> float:
    """Return the position of a value between a blank page (0) and the best (1); unchanged if the blank page is best."""
    if blank > 1 - 1e-6:
        return min(1.0, max(0.0, value))
    return min(1.0, max(0.0, (value - blank) / (1 - blank)))


def visible_words(lines: Sequence[Line], gray: np.ndarray) -> list[Word]:
    """Return the words that are visible in an image (H, W): inside it, and with contrast to their surroundings."""
    height, width = gray.shape
    words: Counter[str] = Counter()
    rendered = []
    for line in lines:
        for word in _words_of(line, _contrast(gray, line.box)):
            is_inside = 0 <= word.x < width and 0 <= word.y < height
            if word.contrast >= MIN_CONTRAST and is_inside and words[word.text] < MAX_MATCHES:
                words[word.text] += 1
                rendered.append(word)
    return rendered[:MAX_WORDS]


def _words_of(line: Line, contrast: float) -> Iterable[Word]:
    """Yield each word with its position, assuming letters of equal width."""
    scale = (line.box.x2 - line.box.x1) / max(1, len(line.text))
    for match in WORDS.finditer(line.text):
        x = line.box.x1 + scale * (match.start() + match.end()) / 2
        yield Word(match[0], x, (line.box.y1 + line.box.y2) / 2, contrast)


def _contrast(gray: np.ndarray, box: Box, margin: int = 0) -> float:
    """Return the standard deviation of gray levels in a box."""
    left, top = max(0, int(box.x1) - margin), max(0, int(box.y1) - margin)
    part = gray[top : max(0, int(box.y2) + 1 + margin), left : max(0, int(box.x2) + 1 + margin)]
    return float(part.std()) if part.size else 0.0


def text_similarity(target: Sequence[Word], rendered: Sequence[Word], shape: tuple[int, ...]) -> float | None:
    """Return the F1 of matched words, weighted by length: 1 for a word at its position, 0.5 for a distant one.

    Words with less contrast than in the design count less. None if neither has a word.
    """
    if not target and not rendered:
        return None
    reach = MAX_DISTANCE * (shape[0] ** 2 + shape[1] ** 2) ** 0.5
    matched = 0.0
    theirs = _by_text(rendered)
    for text, ours in _by_text(target).items():
        matched += len(text) * _matched_sum([[_same_word(one, other, reach) for other in theirs[text]] for one in ours])
    return 2 * matched / sum(len(word.text) for word in (*target, *rendered))


def _by_text(rendered: Sequence[Word]) -> defaultdict[str, list[Word]]:
    groups: defaultdict[str, list[Word]] = defaultdict(list)
    for word in rendered:
        groups[word.text].append(word)
    return groups


def _same_word(one: Word, other: Word, reach: float) -> float:
    distance = ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5
    return (1 - 0.5 * min(1.0, distance / reach)) * min(1.0, other.contrast / one.contrast)


def visible_boxes(boxes: Sequence[Box], gray: np.ndarray) -> list[Box]:
    """Return the visible part of each box in an image (H, W), the largest first, without duplicates."""
    height, width = gray.shape
    inside = (Box(max(0, b.x1), max(0, b.y1), min(width, b.x2), min(height, b.y2)) for b in boxes)
    visible = {
        box: None
        for box in inside
        if 0 < box.area < BACKGROUND_AREA * width * height and _contrast(gray, box, margin=2) >= MIN_CONTRAST
    }  # fmt: skip
    return sorted(visible, key=lambda box: -box.area)[:MAX_MATCHES]


def layout_similarity(target: Sequence[Box], rendered: Sequence[Box]) -> float | None:
    """Return the F1 of boxes matched one to one, with matches weighted by IoU; None if there are none."""
    if not target and not rendered:
        return None
    matched = _matched_sum([[iou(one, other) for other in rendered] for one in target])
    return 2 * matched / (len(target) + len(rendered))


def _matched_sum(values: list[list[float]]) -> float:
    """Return the maximum sum of a one-to-one assignment of rows to columns."""
    from scipy.optimize import linear_sum_assignment

    if not values or not values[0]:
        return 0.0
    if len(values) == 1:
        return max(values[0])
    rows, columns = linear_sum_assignment(values, maximize=True)
    return sum(values[row][column] for row, column in zip(rows, columns, strict=True))
