"""Request completions of data rows from an OpenAI-compatible server (vLLM and others) concurrently.

The messages are those of training, with each image in its position as a data URI. Needs the extra `openai`.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from vlm_grpo.answer_parser import CLOSE, OPEN, normalize_thinking_tags
from vlm_grpo.data.images import open_image
from vlm_grpo.evaluation.aggregate import metric_names
from vlm_grpo.evaluation.dataset_metrics import DATASET_METRICS
from vlm_grpo.evaluation.predictions import RowCompletions, ScoredText
from vlm_grpo.evaluation.sampling_params import SamplingParams
from vlm_grpo.families import FAMILIES, coordinate_space
from vlm_grpo.records import Block, ImageRef, Message, Row
from vlm_grpo.redact import redact_text, split_credentials

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam


PATCH = 28  # pixels: Qwen2-VL and Qwen2.5-VL resize both sides to multiples of it
MIN_PIXELS, MAX_PIXELS = 56 * 56, 14 * 14 * 4 * 16384  # limits of these families' processors


class ServerError(RuntimeError):
    """The server did not complete a row; earlier predictions are kept."""


@dataclass
class OpenAIBackend:
    """Requests completions from the server at `base_url`.

    Args:
        base_url: URL of the API, such as http://localhost:8000/v1.
        model: name of the model on the server.
        concurrency: maximum number of concurrent requests.
        timeout: time limit of a request in seconds.
        retries: number of retries after a failed request (connection, time limit, status 408, 409, 429 or 5xx),
            with increasing pauses.
        answer_space: the coordinate space of the model's boxes; None means unknown.
        template_options: variables of the chat template, which vLLM and SGLang accept as `chat_template_kwargs`.
        min_pixels, max_pixels: other images are resized before they are sent; None means no limit.

    Raises:
        ImportError: the package openai is missing.
    """

    base_url: str = field(repr=False)
    model: str
    max_completion_length: int = 256
    sampling: SamplingParams = field(default_factory=SamplingParams)
    concurrency: int = 8
    timeout: float = 300.0
    retries: int = 3
    answer_space: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    template_options: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError as error:
            raise ImportError('--backend openai needs the package openai: pip install ".[openai]"') from error
        key = os.environ.get("OPENAI_API_KEY") or "none"  # local servers need no key, but the client requires one
        url, credentials = split_credentials(self.base_url)
        http = DefaultHttpxClient(auth=credentials) if credentials else None
        self.client = OpenAI(
            base_url=url, api_key=key, timeout=self.timeout, max_retries=self.retries, http_client=http
        )

    def __call__(self, dataset: Sequence[Row], numbers: Sequence[int]) -> Iterator[list[RowCompletions]]:
        """Yield the rows with these numbers and their completions as they finish.

        Raises:
            ServerError: a request failed after all retries.
        """
        waiting = iter(numbers)
        failure: BaseException | None = None
        pool = ThreadPoolExecutor(self.concurrency)
        running: set[Future[RowCompletions]] = set()
        try:
            while True:
                while failure is None and len(running) < 2 * self.concurrency:
                    number = next(waiting, None)
                    if number is None:
                        break
                    running.add(pool.submit(self._answer, number, dataset[number]))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield [future.result() for future in done if not future.exception()]
                failure = failure or next((future.exception() for future in done if future.exception()), None)
                if failure is not None:  # pending requests are awaited and their results kept
                    running = {future for future in running if not future.cancel()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def _answer(self, number: int, row: Row) -> RowCompletions:
        from openai import OpenAIError

        images = [open_image(ref) if isinstance(ref, ImageRef) else ref for ref in row["images"]]
        resized = [self._resized(image) for image in images]
        facts = {
            "image_sizes": [image.size for image in images],
            "processed_sizes": [image.size for image in resized],
            "answer_space": self.answer_space,
        }
        messages = attach_images(row, resized)
        try:
            completions = [
                self._complete(messages, self.sampling.seed_of(number, k)) for k in range(self.sampling.num_samples)
            ]
        except OpenAIError as error:
            raise ServerError(
                f"{row.get('where') or f'row {number}'}: {redact_text(f'{self.base_url}: {error}')}"
            ) from error
        return RowCompletions(
            number, row, [completion._replace(facts={**facts, **completion.facts}) for completion in completions]
        )

    def _complete(self, messages: list[Message], seed: int) -> ScoredText:
        drawing: dict[str, Any] = {} if self.sampling.is_greedy else {"top_p": self.sampling.top_p, "seed": seed}
        if self.template_options:
            drawing["extra_body"] = {"chat_template_kwargs": dict(self.template_options)}
        reply = self.client.chat.completions.create(
            model=self.model,
            messages=cast("list[ChatCompletionMessageParam]", messages),
            max_tokens=self.max_completion_length,
            temperature=self.sampling.temperature,
            **drawing,
        )
        if not getattr(reply, "choices", None):
            raise ServerError(f"{redact_text(self.base_url)}: the reply has no choices: {reply!r:.300}")
        choice = reply.choices[0]
        opening, text = thinking_prefix(choice.message)
        return ScoredText(
            opening + text,
            reply.usage.completion_tokens if reply.usage else None,
            choice.finish_reason == "length",
            {"turn_opening": opening},
        )

    def _resized(self, image: Image.Image) -> Image.Image:
        """Return the image to send, resized as by the model's processor if its boxes are in those pixels."""
        if self.answer_space == "resized":
            size = grid_size(image.size, self.min_pixels or MIN_PIXELS, self.max_pixels or MAX_PIXELS)
        else:
            size = limited_size(image.size, self.min_pixels, self.max_pixels)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def thinking_prefix(message: ChatCompletionMessage) -> tuple[str, str]:
    """Split a reply into the opening of its turn and the rest; servers do not report what the chat template opened.

    It is inferred from a thinking block that is closed but not opened, or that the server has removed from the reply.
    """
    content = message.content or ""
    thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if isinstance(thought, str) and thought:
        return OPEN, f"{thought}{CLOSE}{content}" if content else thought
    text = normalize_thinking_tags(content)
    return (OPEN if CLOSE in text.partition(OPEN)[0] else ""), content


def attach_images(row: Row, images: Sequence[Image.Image]) -> list[Message]:
    """Return the row's messages in the format of the chat completions API.

    Raises:
        ServerError: the row has a video, which the API does not support.
    """
    waiting = iter(images)
    messages = []
    for message in row["prompt"]:
        content = message["content"]
        if not isinstance(content, str):
            content = [_block(block, waiting, row) for block in content]
            if all(block["type"] == "text" for block in content):
                content = "".join(block["text"] for block in content)
        messages.append({"role": message["role"], "content": content})
    return messages


def _block(block: Block, images: Iterator[Image.Image], row: Row) -> Block:
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]}
    if block["type"] != "image":
        raise ServerError(
            f"{row.get('where')}: --backend openai supports images only, but this row has a {block['type']}"
        )
    file = io.BytesIO()
    next(images).save(file, format="PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": address}}


def limited_size(size: tuple[int, int], fewest: int | None, most: int | None) -> tuple[int, int]:
    """Return width and height scaled such that the number of pixels is within the limits."""
    pixels = size[0] * size[1]
    scale = 1.0
    if most is not None and pixels > most:
        scale = (most / pixels) ** 0.5
    elif fewest is not None and pixels < fewest:
        scale = (fewest / pixels) ** 0.5
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def grid_size(size: tuple[int, int], fewest: int, most: int) -> tuple[int, int]:
    """Return width and height as resized by the processors of Qwen2-VL and 2.5-VL: multiples of 28 in the limits."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(size[1], size[0], factor=PATCH, min_pixels=fewest, max_pixels=most)
    return width, height


def space_of_name(name: str) -> str | None:
    """Infer the coordinate space from the family in a model's name; None if it contains no known family.

    Qwen/Qwen2.5-VL-3B-Instruct is qwen2_5_vl. The longest matching family name is used.
    """
    bare = _letters(name.rsplit("/", 1)[-1])
    named = sorted((family for family in FAMILIES if _letters(family) in bare), key=len)
    return coordinate_space(named[-1]) if named else None


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def needs_space(task: str) -> bool:
    """Return whether a task's metrics compare positions in an image."""
    return any(name.startswith("iou") or name in DATASET_METRICS for name in metric_names(task))
