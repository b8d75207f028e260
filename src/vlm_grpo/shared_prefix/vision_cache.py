"""Image features, computed once for each prompt, not once for each of its completions.

The features of a frozen tower are kept with the prompt: sampling and the old, reference and policy passes of every
iteration use them. Where tower or projector are trained they would be stale after a step: there each pass runs the
tower once for each set of images, and `encode_unique_images` repeats the features, not the pixels, for the rows that
use it. Where parameters are sharded neither is done: all processes would have to take part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from vlm_grpo.families import FAMILIES
from vlm_grpo.model_utils import model_config, part_of
from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_visual
from vlm_grpo.rollouts.segment import row_ids

PIXELS = "pixel_values"
UNIQUE_IMAGES = "unique_images"
Pooled = Tensor | list[Tensor]  # (tokens, D), or one of each image, as the family's tower gives them


@dataclass
class ImageFeatures(ModelOutput):
    """Features of images, as a model takes them in place of their pixels (`mm_encoder_outputs`)."""

    pooler_output: Pooled | None = None
    deepstack_features: list[Pooled] | None = None  # Qwen3-VL's
    visual_indicator_features: Tensor | None = None  # Ovis2's, of the tokens around an image


def has_frozen_vision(model: nn.Module) -> bool:
    """Return whether neither tower nor projector is trained; False for a family whose modules are not known."""
    family = FAMILIES.get(model_config(model).model_type)
    if family is None:
        return False
    parts = {part_of(name, family) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return not parts & {"vision tower", "projector"}


def tower_of(backbone: nn.Module) -> Callable[..., ImageFeatures]:
    """Return the method by which a model of transformers runs its vision tower."""
    return cast("Callable[..., ImageFeatures]", backbone.get_image_features)


def cache_features(
    backbone: nn.Module, prompts: Sequence[EncodedPrompt], to_device: Callable[[ModelInputs], ModelInputs]
) -> None:
    """Run the tower for the samples with images that have no features yet; prompts with the same images share them."""
    run_tower = tower_of(backbone)
    parameters = set(inspect.signature(run_tower).parameters)
    known = {image_keys(prompt): prompt.features for prompt in prompts if prompt.features is not None}
    for prompt in prompts:
        if prompt.features is None and PIXELS in prompt.visual:
            if image_keys(prompt) not in known:
                inputs = to_device({name: value for name, value in prompt.visual.items() if name in parameters})
                with torch.no_grad():
                    known[image_keys(prompt)] = run_tower(**inputs, return_dict=True)
            prompt.features = known[image_keys(prompt)]


def image_keys(prompt: EncodedPrompt) -> tuple[Hashable, ...]:
    """Return the keys of a row's images: equal for rows with the same images in the same order."""
    return tuple(ref.key for ref in prompt.refs)


def with_features(inputs: ModelInputs, prompts: Sequence[EncodedPrompt]) -> ModelInputs:
    """Return forward arguments with the features of the rows' images in place of their pixels.

    Unchanged if some row's features are missing.
    """
    with_images = [prompt for prompt in prompts if PIXELS in prompt.visual]
    features = [prompt.features for prompt in with_images if prompt.features is not None]
    if not with_images or len(features) < len(with_images):
        return inputs
    rest = {name: value for name, value in inputs.items() if name != PIXELS}
    return {**rest, "mm_encoder_outputs": {"image": concat_features(features)}}


def concat_features(features: Sequence[ImageFeatures]) -> ImageFeatures:
    """Concatenate the features of several prompts, with Qwen3-VL's deepstack features and Ovis2's indicators."""
    pooled = _join([one.pooler_output for one in features if one.pooler_output is not None])
    layers = [getattr(one, "deepstack_features", None) for one in features]
    deep = None if layers[0] is None else [_join(list(layer)) for layer in zip(*layers, strict=True)]
    return ImageFeatures(pooler_output=pooled, deepstack_features=deep, **_indicators(features[0]))


def _indicators(features: ImageFeatures) -> ModelInputs:
    """Return Ovis2's features of the tokens around an image: the same for all images."""
    name = "visual_indicator_features"
    return {name: getattr(features, name)} if hasattr(features, name) else {}


def _join(values: Sequence[Pooled]) -> Pooled:
    """Concatenate tensors along their first dimension, lists one after another."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors:
        return torch.cat(tensors)
    return [item for value in values for item in value]


def visual_inputs(model: nn.Module, prompts: Sequence[EncodedPrompt]) -> ModelInputs:
    """Return the visual forward arguments of some rows, for as few passes through the tower as possible."""
    once = (
        unique_image_inputs(model, prompts)
        if any(prompt.features is None for prompt in prompts if prompt.visual)
        else None
    )
    return with_features(collate_visual(prompts), prompts) if once is None else once


def unique_image_inputs(model: nn.Module, prompts: Sequence[EncodedPrompt]) -> ModelInputs | None:
    """Return visual forward arguments with each set of images once, which `encode_unique_images` turns into features.

    The pixels of each set of images are included once, everything else for each row. None where no set is used twice,
    or where the family does not support it.
    """
    image_token = getattr(model_config(model), "image_token_id", None)
    with_images = [prompt for prompt in prompts if prompt.visual]
    unique = list({image_keys(prompt): prompt for prompt in with_images}.values())
    if image_token is None or any(prompt.videos or PIXELS not in prompt.visual for prompt in unique):
        return None
    number = {image_keys(prompt): index for index, prompt in enumerate(unique)}
    rows = [number[image_keys(prompt)] for prompt in with_images]
    if len(rows) == len(unique):
        return None
    rest = [replace(prompt, visual={k: v for k, v in prompt.visual.items() if k != PIXELS}) for prompt in prompts]
    counts = [row_ids(prompt).count(image_token) for prompt in unique]
    return {**collate_visual(rest), UNIQUE_IMAGES: {"visual": collate_visual(unique), "counts": counts, "rows": rows}}


def encode_unique_images(backbone: nn.Module, args: tuple, kwargs: ModelInputs) -> tuple[tuple, ModelInputs] | None:
    """Compute, as a forward pre-hook of the backbone, the features of each prompt, and repeat them for its rows."""
    request = kwargs.get(UNIQUE_IMAGES)
    if request is None:
        return None
    run_tower = tower_of(backbone)
    parameters = set(inspect.signature(run_tower).parameters)
    inputs = {name: value for name, value in request["visual"].items() if name in parameters}
    features = run_tower(**inputs, return_dict=True)
    counts, rows = request["counts"], request["rows"]
    deep = getattr(features, "deepstack_features", None)
    repeated = ImageFeatures(
        pooler_output=None if features.pooler_output is None else _repeat(features.pooler_output, counts, rows),
        deepstack_features=None if deep is None else [_repeat(layer, counts, rows) for layer in deep],
        **_indicators(features),
    )
    rest = {name: value for name, value in kwargs.items() if name != UNIQUE_IMAGES}
    return args, {**rest, "mm_encoder_outputs": {"image": repeated}}


def _repeat(features: Pooled, counts: list[int], rows: list[int]) -> Pooled:
    """Return the features of each row's prompt, which has `counts` image tokens, in the given container type."""
    flat = features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat(list(features))  # (tokens, D)
    parts = flat.split(counts)
    repeated = torch.cat([parts[row] for row in rows])
    return repeated if isinstance(features, Tensor) else [repeated]
