"""Environment `visual_crop`: the model zooms into parts of an image, as in DeepEyes (arXiv:2505.14362)."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vlm_grpo.boxes import Box, convert
from vlm_grpo.envs.environment import Environment, ToolError
from vlm_grpo.records import Block
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.adapter import record_of_row

SMALLEST = 28  # minimum side in pixels: one token of the Qwen families


class VisualCrop(Environment):
    """A question about images that the model may zoom into before it answers.

    Args:
        max_crops: maximum number of crops per episode.
        tool_bonus: bonus for a crop, given only with a correct final answer, so that crops are not made for the bonus
            alone.
        space: coordinate space of the model's boxes: original (pixels), resized, thousand or unit; None means that of
            its family.
    """

    def __init__(self, *, max_crops: int = 4, tool_bonus: float = 0.2, space: str | None = None) -> None:
        if max_crops < 1:
            raise ValueError(f"max_crops must be at least 1, got {max_crops}")
        self.max_crops, self.tool_bonus, self.space = max_crops, tool_bonus, space

    def reset(self, **row: object) -> str:
        """Start with the images of a row."""
        self.record = record_of_row(row)
        self.images: Sequence[Image.Image] = []
        self.crops, self.text = 0, ""
        return ""

    def see(
        self,
        images: Sequence[Image.Image],
        processed_sizes: Sequence[tuple[int, int] | None],
        answer_space: str | None,
        **facts: object,
    ) -> None:
        """Store the row's images, their processed sizes, and the coordinate space of the model's boxes."""
        self.images, self.sizes = images, processed_sizes
        self.box_space = self.space or answer_space or "original"

    def zoom(self, box: list[float], image: int = 0) -> list[Block]:
        """Show a part of an image, enlarged.

        Args:
            box: The part as [x1, y1, x2, y2], left, top, right and bottom.
            image: The number of the image, from 0.
        """
        if self.crops >= self.max_crops:
            raise ToolError(f"no more than {self.max_crops} looks; answer now")
        if isinstance(image, bool) or not isinstance(image, int) or not 0 <= image < len(self.images):
            raise ToolError(f"image must be from 0 to {len(self.images) - 1}, got {image!r}")
        part = self._part(box, image)
        self.crops += 1
        return [{"type": "image", "image": self.images[image].crop(part)}]

    def _part(self, box: object, image: int) -> tuple[int, int, int, int]:
        """Return the box in pixels of the original image, clipped to it and enlarged to the minimum size.

        Raises:
            ToolError: it is not a box, or is outside of the image.
        """
        numbers = box if isinstance(box, list) else []
        if len(numbers) != 4 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
            raise ToolError(f"box must be four numbers, got {box!r:.100}")
        width, height = self.images[image].size
        x1, y1, x2, y2 = convert(Box(*numbers), self.box_space, "original", (width, height), self.sizes[image])
        x1, x2, y1, y2 = max(x1, 0), min(x2, width), max(y1, 0), min(y2, height)
        if not (x1 < x2 and y1 < y2):
            raise ToolError(f"box must lie in the image with x1 < x2 and y1 < y2, got {box!r:.100}")
        (left, right), (top, bottom) = _expand(x1, x2, width), _expand(y1, y2, height)
        return left, top, right, bottom

    def finish(self, text: str) -> None:
        """Store the last turn."""
        self.text = text

    def get_reward(self) -> float:
        """Return the accuracy of the final answer, plus the bonus for a crop if it is correct."""
        accuracy = accuracy_reward(self.text, self.record) or 0.0
        return accuracy + self.tool_bonus * (accuracy > 0.5 and self.crops > 0)

    def metrics(self) -> dict[str, float]:
        """Return success and the number of crops."""
        return {"success": float((accuracy_reward(self.text, self.record) or 0.0) > 0.5), "crops": float(self.crops)}


def _expand(low: float, high: float, limit: int) -> tuple[int, int]:
    """Return a range in whole pixels, at least SMALLEST long if the image is."""
    missing = max(0.0, min(SMALLEST, limit) - (high - low))
    start = min(max(low - missing / 2, 0), limit - min(SMALLEST, limit))
    return int(start), min(limit, int(max(high + missing / 2, start + min(SMALLEST, limit)) + 0.999))
