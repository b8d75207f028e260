"""Images for a vLLM server: its processor turns them into features, and these are placed in the trainer's tokens.

A server expands an image to tokens of its own. They have to be those of the trainer, or the two would see different
prompts; whatever differs is an error here.
"""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import groupby
from typing import Any, NamedTuple

from PIL import Image

from vlm_grpo.data.images import open_image
from vlm_grpo.records import ImageRef, JsonObject
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.servers import ServerClient, ServerUnavailableError

MOST_FEATURES = 2**30  # characters of features that are kept for the next turns
IMAGE_SETTINGS = (  # of image processors, that limit the tokens of an image
    "size",
    "max_patches",
    "min_patches",
    "max_slice_nums",
    "scale_resolution",
    "image_grid_pinpoints",
    "max_tiles",
    "max_image_tokens",
    "min_image_tokens",
    "do_image_splitting",
    "max_soft_tokens",
)


class TokenRange(NamedTuple):
    """Neighbouring tokens of a prompt."""

    offset: int
    length: int


@dataclass(frozen=True)
class RenderedImage:
    """An image as the server's processor sees it.

    Attributes:
        ids: tokens to which the server expands it.
        runs: of image tokens among them; an embedding comes to each.
        content_hash: the server's.
        features: its tensors, as the server encodes them.
        url: the image itself, where it has several runs: features can be placed at one alone.
    """

    ids: tuple[int, ...]
    runs: tuple[TokenRange, ...]
    content_hash: str
    features: str
    url: str = ""


def token_runs(ids: Sequence[int], token: int) -> tuple[TokenRange, ...]:
    """Return the longest ranges of nothing but one token."""
    runs, offset = [], 0
    for is_token, group in groupby(ids, lambda each: each == token):
        length = sum(1 for _ in group)
        if is_token:
            runs.append(TokenRange(offset, length))
        offset += length
    return tuple(runs)


class ImageRenderer:
    """Lets a server turn images into features, each image once; they are kept for the following turns.

    Args:
        run: calls a function with a server and each item, as `ServerPool.map` does.
        image_token_id: stands for one embedding of an image.
        image_settings: of the server's image processor, where the run's differ.
        most: characters of features that are kept.
    """

    def __init__(
        self,
        run: Callable[[Callable[[ServerClient, ImageRef], RenderedImage], Sequence[ImageRef]], list[RenderedImage]],
        image_token_id: int,
        image_settings: Mapping[str, object],
        most: int = MOST_FEATURES,
    ) -> None:
        self.run, self.image_token_id, self.image_settings, self.most = run, image_token_id, image_settings, most
        self._keys: dict[int, tuple[ImageRef, Hashable]] = {}  # a reference that is held keeps its id
        self._images: OrderedDict[Hashable, RenderedImage] = OrderedDict()

    def render(self, prompts: Sequence[EncodedPrompt]) -> list[list[RenderedImage]]:
        """Return the images of each prompt."""
        keys = [[self._key(ref) for ref in prompt.refs] for prompt in prompts]
        missing = {
            key: ref
            for prompt, row in zip(prompts, keys, strict=True)
            for ref, key in zip(prompt.refs, row, strict=True)
            if key not in self._images
        }
        self._images.update(zip(missing, self.run(self._render, list(missing.values())), strict=True))
        for key in {key: None for row in keys for key in row}:
            self._images.move_to_end(key)
        images = [[self._images[key] for key in row] for row in keys]
        self._shrink()
        return images

    def clear(self) -> None:
        """Forget all images."""
        self._keys.clear()
        self._images.clear()

    def _key(self, ref: ImageRef) -> Hashable:
        """Return a key of an image's content when it was first seen: a tool may draw on its image afterwards."""
        if id(ref) not in self._keys:
            self._keys[id(ref)] = ref, _content_key(ref)
        return self._keys[id(ref)][1]

    def _shrink(self) -> None:
        """Forget the images that were not used for longest, down to the limit."""
        size = sum(len(image.features) for image in self._images.values())
        while size > self.most:
            _, image = self._images.popitem(last=False)
            size -= len(image.features)

    def _render(self, client: ServerClient, ref: ImageRef) -> RenderedImage:
        url = _data_url(open_image(ref))
        content = [{"type": "image_url", "image_url": {"url": url}}]
        body: JsonObject = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        if self.image_settings:
            body["mm_processor_kwargs"] = dict(self.image_settings)
        answer = client.post("/v1/chat/completions/render", body)
        if "token_ids" not in answer:
            raise ServerUnavailableError(f"{client.name} sent no tokens for an image: {answer}")
        features = answer["features"]
        place = features["mm_placeholders"]["image"][0]
        ids = tuple(answer["token_ids"][place["offset"] : place["offset"] + place["length"]])
        runs = token_runs(ids, self.image_token_id)
        if not runs:
            raise ValueError(
                f"{ref.where or 'an image'}: the server {client.name} expands it to tokens without the image token "
                f"{self.image_token_id} of the trainer's processor: {list(ids[:20])}; both have to use the same model"
            )
        data, content_hash = features["kwargs_data"]["image"][0], features["mm_hashes"]["image"][0]
        return RenderedImage(ids, runs, content_hash, data, url if len(runs) > 1 else "")


def _content_key(ref: ImageRef) -> Hashable:
    if not isinstance(ref.source, Image.Image):
        return ref.key
    return ref.source.mode, ref.source.size, blake2b(ref.source.tobytes(), digest_size=16).digest()


def _data_url(image: Image.Image) -> str:
    """Return an image as a PNG file, which loses nothing, in a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_fields(
    prompt: EncodedPrompt, images: Sequence[RenderedImage], image_token_id: int, advice: str
) -> JsonObject:
    """Return what a request for tokens says about images, and the tokens themselves.

    Args:
        prompt: in which the images are expanded.
        images: its images, in order.
        image_token_id: stands for one embedding.
        advice: what to do where the tokens of an image differ.

    Raises:
        ValueError: the server expands an image otherwise than the trainer.
    """
    mismatch = partial(_mismatch, prompt, images, image_token_id, advice)
    if not images:
        if image_token_id in prompt.input_ids:
            raise mismatch()
        return {"token_ids": prompt.input_ids}
    if all(len(image.runs) == 1 for image in images):
        ranges = _place_runs(prompt.input_ids, [image.runs[0].length for image in images], image_token_id)
        if ranges is None:
            raise mismatch()
        return {
            "token_ids": prompt.input_ids,
            "features": {
                "mm_hashes": {"image": [image.content_hash for image in images]},
                "mm_placeholders": {"image": [each._asdict() for each in ranges]},
                "kwargs_data": {"image": [image.features for image in images]},
            },
        }
    ids = _collapse(prompt.input_ids, images, image_token_id)
    if ids is None:
        raise mismatch()
    parts: list[dict[str, Any]] = [{"type": "image_url", "url": image.url} for image in images]
    return {"token_ids": ids, "content_parts": parts, "return_token_ids": True}


def _place_runs(ids: Sequence[int], lengths: Sequence[int], token: int) -> list[TokenRange] | None:
    """Return where runs of these lengths lie, one after the other; None if they are not all image tokens there are."""
    ranges: list[TokenRange] = []
    at = 0
    for length in lengths:
        offset = _find(ids, [token] * length, at)
        if offset is None or token in ids[at:offset]:
            return None
        ranges.append(TokenRange(offset, length))
        at = offset + length
    return None if token in ids[at:] else ranges


def _collapse(ids: Sequence[int], images: Sequence[RenderedImage], token: int) -> list[int] | None:
    """Return the tokens with one image token for each image; None if an image's tokens are not there."""
    collapsed: list[int] = []
    at = 0
    for image in images:
        offset = _find(ids, image.ids, at)
        if offset is None:
            return None
        collapsed += [*ids[at:offset], token]
        at = offset + len(image.ids)
    collapsed += ids[at:]
    return collapsed if collapsed.count(token) == len(images) else None


def _find(ids: Sequence[int], part: Sequence[int], start: int) -> int | None:
    """Return the first position of neighbouring tokens, from `start` on; None without any."""
    part, size = list(part), len(part)
    for offset in range(start, len(ids) - size + 1):
        if ids[offset] == part[0] and list(ids[offset : offset + size]) == part:
            return offset
    return None


def _mismatch(prompt: EncodedPrompt, images: Sequence[RenderedImage], image_token_id: int, advice: str) -> ValueError:
    where = next((ref.where for ref in prompt.refs if ref.where), "a prompt")
    trainers = [run.length for run in token_runs(prompt.input_ids, image_token_id)]
    servers = [[run.length for run in image.runs] for image in images]
    return ValueError(
        f"{where}: the server expands images to other tokens than the trainer. Runs of image tokens: {trainers} in the "
        f"trainer's prompt, {servers} for the {len(images)} images on the server. Both have to process images alike "
        f"(model, limits on pixels): {advice}"
    )


def changed_image_settings(image_processor: object, original: object) -> dict[str, object]:
    """Return the settings of an image processor that the run has changed, for a server to do the same.

    Args:
        image_processor: the run's.
        original: as it is stored with the model, which is what a server uses.
    """
    pairs = {name: (getattr(image_processor, name, None), getattr(original, name, None)) for name in IMAGE_SETTINGS}
    changed = {name: value for name, (value, former) in pairs.items() if value is not None and value != former}
    return {name: dict(value) if hasattr(value, "keys") else value for name, value in changed.items()}
