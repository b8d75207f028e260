"""Environment `agent_code`: the model restores a corrupted image with Python, as in MAT-Coding (arXiv:2505.14246)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlm_grpo.envs.environment import Environment, ToolError
from vlm_grpo.records import Block, Record, Row
from vlm_grpo.registry import Registry
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.adapter import record_of_row
from vlm_grpo.rewards.squad import exact_match_reward, word_f1_reward

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from vlm_grpo.envs.sandbox import SandboxResult

CORRECT_ABOVE = 0.5  # an answer with a higher score is correct
MAX_PIXELS = 2**22  # pixels of a returned image
MAX_OUTPUT_LENGTH = 2000  # characters of a script's output
SPECIAL_TOKEN = re.compile(r"<\|")  # prefix of special tokens: output must not end the turn or add an image
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
SCORES: Registry[Callable[[str, Record], float | None]] = Registry(
    "score", {"word_f1": word_f1_reward, "exact_match": exact_match_reward, "accuracy": accuracy_reward}
)


class AgentCode(Environment):
    """A question about an image that is rotated, dark, overexposed, blurred, noisy or miscropped.

    The row's first image is already corrupted, and its optional column `original` has the clean one (a path, base64 or
    bytes). With `damage`, the row must have no image, because the model would see it intact; `original` is corrupted.

    Args:
        time_limit: time limit of a script in seconds.
        memory_mb: memory limit of a script in MiB, in addition to Python's own.
        max_calls: maximum number of scripts per episode, including failed ones.
        damage: None, "drawn" (random), or rotate, dark, overexposed, blur, noise, crop. Its parameters depend on the
            row's id and the seed only, so that all completions of a group see the same image.
        seed: seed of the corruption.
        score: score of the final answer: word_f1, exact_match or accuracy.
        tool_bonus: bonus for a script that returned an image, given only with a correct final answer, so that scripts
            are not run for the bonus alone.
        backend: sandbox backend; "auto" is the strongest available one (see envs/sandbox/__init__.py).

    Raises:
        KeyError: the damage or score is unknown.
        ValueError: an option is out of range.
        SandboxError: no sandbox backend works on this machine.
    """

    def __init__(
        self,
        *,
        time_limit: float = 5.0,
        memory_mb: int = 512,
        max_calls: int = 3,
        damage: str | None = None,
        seed: int = 0,
        score: str = "word_f1",
        tool_bonus: float = 0.2,
        backend: str = "auto",
    ) -> None:
        from vlm_grpo.envs.corruptions import CORRUPTIONS, RANDOM
        from vlm_grpo.envs.sandbox import SandboxSettings, shared_sandbox

        if max_calls < 1:
            raise ValueError(f"agent_code: max_calls must be at least 1, got {max_calls!r}")
        if damage not in (None, RANDOM):
            CORRUPTIONS[damage]
        self._damage, self._seed, self._max_calls = damage, seed, max_calls
        self._score, self._bonus = SCORES[score], tool_bonus
        settings = SandboxSettings(time_limit=time_limit, memory_mb=memory_mb, max_pixels=MAX_PIXELS)
        self._sandbox = shared_sandbox(settings, backend)
        self._image: Image.Image

    def reset(self, **row: object) -> str | list[Block]:
        """Start with the image of a row; it is returned if it was corrupted here.

        Raises:
            ValueError: the row has no gold answer, or lacks the required image.
        """
        self._record = record_of_row(row)
        if self._record.answer in (None, "", []):
            raise ValueError(f"{_where(self._record)}agent_code needs a gold answer, got {self._record.answer!r}")
        self._original = _original(row, self._record)
        self._calls = self._failed = 0
        self._repaired: Image.Image | None = None
        self._text = ""
        if self._damage is None:
            self._image = _first_image(row, self._record)
            return ""
        self._image = self._damaged(row)
        return [{"type": "image", "image": self._image}]

    def run_python(self, code: str) -> list[Block]:
        """Run Python on the image. It is `image` (PIL, RGB) and the file input.png; Image of PIL and np are there.

        Leave the repaired image in `result` to look at it. What the code prints is shown, too. Every call begins with
        the image as it was given.

        Args:
            code: The code. No network, no other files, no other programs.
        """
        if self._calls >= self._max_calls:
            raise ToolError(f"no more than {self._max_calls} scripts; answer now")
        self._calls += 1
        try:
            return self._shown(self._run(code))
        except ToolError:
            self._failed += 1
            raise

    def _run(self, code: object) -> SandboxResult:
        if not isinstance(code, str) or not code.strip():
            raise ToolError(f"code must be Python, got {code!r:.100}")
        try:
            result = self._sandbox.run(code, self._image)
        except ValueError as error:
            raise ToolError(str(error)) from error
        if result.status != "ok":
            raise ToolError("\n".join(part for part in (_clean(result.stdout), _clean(result.stderr)) if part))
        return result

    def _shown(self, result: SandboxResult) -> list[Block]:
        """Return the image and the output, with a note on anything missing.

        Raises:
            ToolError: no model can process such an image.
        """
        from vlm_grpo.data.images import check_sides

        text = _clean(result.stdout)
        if result.image is None:
            return [{"type": "text", "text": f"{text}\n(no image in `result`)".lstrip()}]
        try:
            check_sides(result.image)
        except ValueError as error:
            raise ToolError(f"result: {error}") from error
        self._repaired = result.image
        return [{"type": "image", "image": result.image}, *([{"type": "text", "text": text}] if text else [])]

    def finish(self, text: str) -> None:
        """Store the last turn."""
        self._text = text

    def get_reward(self) -> float:
        """Return the score of the final answer, plus the bonus for a returned image if it is correct."""
        score = self._points()
        return score + self._bonus * (score > CORRECT_ABOVE and self._repaired is not None)

    def metrics(self) -> dict[str, float]:
        """Return success, the number of scripts and of failures, and how close the last image is to the original.

        `pixel_similarity` is 1 for equal pixels and 0 for opposite ones; `similarity_gained` is the part of it gained
        by the scripts. Both are given only for rows with an original.
        """
        numbers = {
            "success": float(self._points() > CORRECT_ABOVE),
            "runs": float(self._calls),
            "failed": float(self._failed),
        }
        if self._original is None:
            return numbers
        before = pixel_similarity(self._image, self._original)
        after = before if self._repaired is None else pixel_similarity(self._repaired, self._original)
        return {**numbers, "similarity": after, "similarity_gained": after - before}

    def _points(self) -> float:
        return self._score(self._text, self._record) or 0.0

    def _damaged(self, row: Row) -> Image.Image:
        from vlm_grpo.envs.corruptions import corrupt

        where = _where(self._record)
        if self._original is None:
            raise ValueError(f"{where}agent_code with damage {self._damage!r} needs the column 'original', an image")
        if row.get("images") or self._record.images:
            raise ValueError(
                f"{where}agent_code with damage {self._damage!r}: the row must have no image, because it would "
                "be shown intact; use the column 'original' only"
            )
        return corrupt(self._original, self._damage or "", f"{self._seed}/{self._record.id}/{self._record.question}")


def pixel_similarity(image: Image.Image, original: Image.Image) -> float:
    """Return 1 minus the mean difference of RGB values, the first image scaled to the size of the second."""
    import numpy as np

    pixels = np.asarray(image.convert("RGB").resize(original.size), dtype=np.float32)
    return float(1 - np.abs(pixels - np.asarray(original.convert("RGB"), dtype=np.float32)).mean() / 255)


def _first_image(row: Row, record: Record) -> Image.Image:
    from vlm_grpo.data.images import image_ref, open_image

    images = row.get("images") or record.images
    if not images:
        raise ValueError(f"{_where(record)}agent_code needs an image in every row, got none")
    return open_image(image_ref(images[0], record.where))


def _original(row: Row, record: Record) -> Image.Image | None:
    from vlm_grpo.data.images import image_ref, open_image

    value = row.get("original") or record.extra.get("original")
    return None if value is None else open_image(image_ref(value, f"{record.where or 'row'}, 'original'"))


def _where(record: Record) -> str:
    return f"{record.where}: " if record.where else ""


def _clean(text: str) -> str:
    """Return the end of a script's output, which has the errors, without special tokens and control characters."""
    text = SPECIAL_TOKEN.sub("< |", UNPRINTABLE.sub(" ", text)).strip()
    return text if len(text) <= MAX_OUTPUT_LENGTH else f"[...]\n{text[-MAX_OUTPUT_LENGTH:]}"
