"""Count the tokens of an image, and limit them for each kind of image processor.

Only tokens for image features are counted, not delimiters of tiles and rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from vlm_grpo.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin


ProcessorSettings = Mapping[str, Any]

# Image sizes (width, height) for verifying a limit: photos, screenshots, strips, and small images, which may be
# enlarged.
SHAPES = (
    (4032, 3024), (3024, 4032), (2048, 2048), (1920, 1080), (1600, 1200), (800, 3200), (3200, 800),
    (1000, 250), (700, 500), (448, 448), (300, 500), (200, 150),
)  # fmt: skip
SOFT_TOKENS = (1120, 560, 280, 140, 70)  # token budgets of Gemma 4's image processor


def count_image_tokens(processor: Any, model_type: str, size: tuple[int, int]) -> int:
    """Return the number of tokens of a single blank image of size (width, height) in a prompt.

    Raises:
        ValueError: the processor's image token is unknown.
    """
    image = Image.new("RGB", size, "white")
    if getattr(processor, "chat_template", None):
        message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}]}
        inputs = processor.apply_chat_template([[message]], tokenize=True, return_dict=True, return_tensors="pt")
    else:
        inputs = processor(text=[processor.image_token], images=[[image]], return_tensors="pt")
    return inputs["input_ids"][0].tolist().count(_feature_token(processor, model_type))


def _feature_token(processor: ProcessorMixin, model_type: str) -> int:
    family = FAMILIES.get(model_type)
    if family is not None:
        return processor.tokenizer.convert_tokens_to_ids(family.placeholders[0])
    token = getattr(processor, "image_token_id", None)
    if token is None:
        raise ValueError(f"{type(processor).__name__} has no known image token")
    return token


def limit_image_tokens(processor: ProcessorMixin, config: PreTrainedConfig, limit: int) -> None:
    """Configure the image processor (and the model if needed) such that images have at most `limit` tokens.

    An image has at least one token along its shorter side: images with an aspect ratio above `limit` (never
    more than 200) may exceed a very small limit.

    Raises:
        ValueError: the smallest setting of this family exceeds the limit.
    """
    model_type, images = config.model_type, processor.image_processor
    kind = next((kind for kind in KINDS if kind.fits(images)), None)
    for settings in kind.settings(processor, limit) if kind else [{}]:
        for name, value in settings.items():
            setattr(images, name, value)
        if "image_grid_pinpoints" in settings:  # the model reassembles the tiles
            config.image_grid_pinpoints = settings["image_grid_pinpoints"]
        if all(count_image_tokens(processor, model_type, size) <= limit for size in SHAPES):
            return
    most = max(count_image_tokens(processor, model_type, size) for size in SHAPES)
    raise ValueError(
        f"--max_image_tokens {limit} is too low for {type(images).__name__}: its minimum is {most} tokens per "
        f"image; use at least {most}"
    )


def pixel_unit(images: Any) -> int:
    """Return the pixels per token if the processor resizes to a range of pixels; GLM counts a doubled frame."""
    frames = images.temporal_patch_size if type(images).__name__.startswith("Glm") else 1
    return (images.patch_size * images.merge_size) ** 2 * frames


def is_ranged(images: object) -> bool:
    """Return whether an image processor resizes to a range of pixel counts."""
    size, edges = getattr(images, "size", None), ("shortest_edge", "longest_edge")
    return size is not None and all(edge in size and size[edge] is not None for edge in edges)


def _ranged(processor: ProcessorMixin, limit: int) -> Iterator[ProcessorSettings]:
    images = processor.image_processor
    low, high = images.size["shortest_edge"], min(images.size["longest_edge"], limit * pixel_unit(images))
    yield {"size": type(images.size)(**{**dict(images.size), "shortest_edge": min(low, high), "longest_edge": high})}


def _patches(processor: ProcessorMixin, limit: int) -> Iterator[ProcessorSettings]:
    """Yield patch limits. Kimi pads to whole tokens after resizing, so that fewer patches than tokens may be needed."""
    images, per_token = processor.image_processor, processor.image_processor.merge_size**2
    sides = [images.patch_size * patches - 1 for patches in range(2, 40)]  # sizes with the most padding
    shapes = [*SHAPES, *((width, height) for width in sides for height in sides)]
    most = min(images.max_patches, limit * per_token)
    for patches in range(most, 1, -max(per_token, most // 64)):
        counts = (images.get_number_of_image_patches(h, w, {"max_patches": patches}) for w, h in shapes)
        if all(count <= limit * per_token for count in counts):
            yield {"max_patches": patches}
    yield {"max_patches": 1}


def _tiles(processor: Any, limit: int) -> Iterator[ProcessorSettings]:
    """Yield numbers of tiles, each with a fixed number of tokens; several tiles are accompanied by the whole image."""
    images, tiles = processor.image_processor, limit // processor.image_seq_length
    most = min(images.max_patches, tiles - 1) if tiles > 2 else 1
    yield {"max_patches": most, "min_patches": min(images.min_patches, most)}


def _slices(processor: ProcessorMixin, limit: int) -> Iterator[ProcessorSettings]:
    for most in range(processor.image_processor.max_slice_nums, 0, -1):
        yield {"max_slice_nums": most}
    for share in range(7, 0, -1):  # then a smaller image
        yield {"max_slice_nums": 1, "scale_resolution": 448 * share // 8}


def _square_of_tiles(processor: Any, limit: int) -> Iterator[ProcessorSettings]:
    """Yield sizes of k x k tiles along the longest edge, accompanied by the whole image."""
    images, tiles = processor.image_processor, limit // processor.image_seq_len
    side = math.isqrt(max(0, tiles - 1)) if tiles >= 5 else 1
    longest = min(images.size["longest_edge"], side * images.max_image_size["longest_edge"])
    yield {"size": type(images.size)(**{**dict(images.size), "longest_edge": longest})}


def _longest_edge(processor: Any, limit: int) -> Iterator[ProcessorSettings]:
    """Yield sizes for a grid of patches with the image's aspect ratio."""
    images = processor.image_processor
    unit = processor.patch_size * processor.spatial_merge_size
    longest = min(images.size["longest_edge"], math.isqrt(limit) * unit)
    yield {"size": type(images.size)(**{**dict(images.size), "longest_edge": longest})}


def _pinpoints(processor: Any, limit: int) -> Iterator[ProcessorSettings]:
    """Yield the resolutions for tiling with few enough tokens, or a single tile."""
    images = processor.image_processor
    counts = processor._get_num_multimodal_tokens(image_sizes=images.image_grid_pinpoints)["num_image_tokens"]
    allowed = [pair for pair, count in zip(images.image_grid_pinpoints, counts, strict=True) if count <= limit]
    if allowed:
        yield {"image_grid_pinpoints": allowed}
    side = min(min(pair) for pair in images.image_grid_pinpoints)
    yield {"image_grid_pinpoints": [[side, side]]}


def _lfm2(processor: ProcessorMixin, limit: int) -> Iterator[ProcessorSettings]:
    images = processor.image_processor
    side = math.ceil(images.tile_size // images.encoder_patch_size / images.downsample_factor)
    tiles = (limit - images.max_image_tokens) // side**2  # in addition to the thumbnail
    if tiles >= max(2, images.min_tiles):
        yield {"max_tiles": min(images.max_tiles, tiles)}
    most = min(limit, images.max_image_tokens)
    single_tile = {"max_image_tokens": most, "min_image_tokens": min(images.min_image_tokens, most)}
    yield {**single_tile, "do_image_splitting": False}


def _soft_tokens(processor: ProcessorMixin, limit: int) -> Iterator[ProcessorSettings]:
    most = processor.image_processor.max_soft_tokens
    fitting = [budget for budget in SOFT_TOKENS if budget <= min(limit, most)]
    yield {"max_soft_tokens": fitting[0] if fitting else SOFT_TOKENS[-1]}


class Kind(NamedTuple):
    """A kind of image processor: how it is recognized, and its settings in decreasing order of tokens."""

    name: str
    fits: Callable[[object], bool]
    settings: Callable[[ProcessorMixin, int], Iterator[ProcessorSettings]]


def _has(*names: str) -> Callable[[object], bool]:
    return lambda images: all(hasattr(images, name) for name in names)


def _has_longest_edge(images: object) -> bool:
    return hasattr(images, "patch_size") and "longest_edge" in (getattr(images, "size", None) or {})


KINDS = (
    Kind("a range of pixels", lambda images: is_ranged(images) and hasattr(images, "merge_size"), _ranged),
    Kind("patches", _has("max_patches", "merge_size"), _patches),
    Kind("tiles", _has("max_patches", "crop_to_patches"), _tiles),
    Kind("slices", _has("max_slice_nums"), _slices),
    Kind("tiles along the longest edge", _has("max_image_size"), _square_of_tiles),
    Kind("resolutions of tiles", _has("image_grid_pinpoints"), _pinpoints),
    Kind("tiles and tokens", _has("max_image_tokens", "max_tiles"), _lfm2),
    Kind("a budget of tokens", _has("max_soft_tokens"), _soft_tokens),
    Kind("the longest edge", _has_longest_edge, _longest_edge),
)  # fmt: skip
