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
from hashlib import blake2b

from PIL import Image
from transformers.image_utils import SizeDict

from vlm_grpo.data.images import open_image
from vlm_grpo.records import ImageRef, JsonObject
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.placement import Expansion, place_images
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


@dataclass(frozen=True)
class RenderedImage:
    """An image as the server's processor sees it.

    Attributes:
        ids: tokens to which the server expands it.
        expansion: the tokens that have to be in the trainer's prompt.
        content_hash: the server's.
        features: its tensors, as the server encodes them.
        url: the image itself, where other tokens stand between those of the image: features can be placed at one
            unbroken run alone.
    """

    ids: tuple[int, ...]
    expansion: Expansion
    content_hash: str
    features: str
    url: str = ""


def image_token_id(encoder: PromptEncoder) -> int:
    """Return the token that stands for one embedding of an image; -1 without images, which is no token."""
    token = getattr(encoder.base_processor, "image_token_id", None)
    if token is None and (name := getattr(encoder.base_processor, "image_token", None)) is not None:
        token = encoder.tokenizer.convert_tokens_to_ids(name)
    return token if isinstance(token, int) else -1


def expansion_of(ids: Sequence[int], image_token_id: int) -> Expansion:
    """Return the image tokens of an expansion where they are an unbroken run; else all of its tokens."""
    count = ids.count(image_token_id)
    first = ids.index(image_token_id)
    run = ids[first : first + count]
    is_unbroken = run.count(image_token_id) == count
    return Expansion(run if is_unbroken else ids, frozenset([image_token_id]))


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
        url = image_url(open_image(ref))
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
        if self.image_token_id not in ids:
            raise ValueError(
                f"{ref.where or 'an image'}: the server {client.name} expands it to tokens without the image token "
                f"{self.image_token_id} of the trainer's processor: {list(ids[:20])}; both have to use the same model"
            )
        data, content_hash = features["kwargs_data"]["image"][0], features["mm_hashes"]["image"][0]
        expansion = expansion_of(ids, self.image_token_id)
        is_unbroken = set(expansion.tokens) == expansion.image_tokens
        return RenderedImage(ids, expansion, content_hash, data, "" if is_unbroken else url)


def _content_key(ref: ImageRef) -> Hashable:
    if not isinstance(ref.source, Image.Image):
        return ref.key
    return ref.source.mode, ref.source.size, blake2b(ref.source.tobytes(), digest_size=16).digest()


def image_url(image: Image.Image) -> str:
    """Return an image as a PNG file, which loses nothing, in a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_fields(prompt: EncodedPrompt, images: Sequence[RenderedImage], image_token_id: int) -> JsonObject:
    """Return what a request for tokens says about images, and the tokens themselves.

    Args:
        prompt: in which the images are expanded.
        images: its images, in order.
        image_token_id: stands for one embedding.

    Raises:
        ValueError: the server expands an image otherwise than the trainer.
    """
    ids, where = prompt.input_ids, next((ref.where for ref in prompt.refs if ref.where), "")
    if not images:
        if image_token_id in ids:
            raise ValueError(f"a prompt has {ids.count(image_token_id)} tokens of images, and no image")
        return {"token_ids": ids}
    starts = place_images(ids, [image.expansion for image in images], where)
    lengths = [len(image.expansion.tokens) for image in images]
    if any(image.url for image in images):
        parts = [{"type": "image_url", "url": image.url} for image in images]
        short = _collapse(ids, starts, lengths, image_token_id)
        return {"token_ids": short, "content_parts": parts, "return_token_ids": True}
    places = [{"offset": start, "length": length} for start, length in zip(starts, lengths, strict=True)]
    features = {
        "mm_hashes": {"image": [image.content_hash for image in images]},
        "mm_placeholders": {"image": places},
        "kwargs_data": {"image": [image.features for image in images]},
    }
    return {"token_ids": ids, "features": features}


def _collapse(ids: Sequence[int], starts: Sequence[int], lengths: Sequence[int], token: int) -> list[int]:
    """Return the tokens with one image token in place of each image's."""
    short: list[int] = []
    end = 0
    for start, length in zip(starts, lengths, strict=True):
        short += [*ids[end:start], token]
        end = start + length
    return [*short, *ids[end:]]


def changed_image_settings(image_processor: object, original: object) -> dict[str, object]:
    """Return the settings of an image processor that the run has changed, for a server to do the same.

    Args:
        image_processor: the run's.
        original: as it is stored with the model, which is what a server uses.
    """
    pairs = {name: (getattr(image_processor, name, None), getattr(original, name, None)) for name in IMAGE_SETTINGS}
    changed = {name: value for name, (value, former) in pairs.items() if value is not None and value != former}
    return {name: _plain(value) for name, value in changed.items()}


def _plain(value: object) -> object:
    """Return a value for JSON."""
    if isinstance(value, SizeDict | Mapping):
        return {name: each for name, each in dict(value).items() if each is not None}
    return value
