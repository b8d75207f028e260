"""Image features, computed once for each prompt, not once for each of its completions.

Those of a frozen tower are kept with the prompt: they serve the sampling, the old, the reference and the policy pass of
every iteration. Where tower or projector are trained they would be stale after a step: there each pass runs the tower
once for each set of images, and `tower_once` repeats the features, not the pixels, for the rows that show it. Where
parameters are sharded neither is done: all processes would have to take part.
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
TOWER = "tower_once"
Pooled = Tensor | list[Tensor]  # (tokens, D), or one of each image, as the family's tower gives them


@dataclass
class ImageFeatures(ModelOutput):
    """Features of images, as a model takes them in place of their pixels (`mm_encoder_outputs`)."""

    pooler_output: Pooled | None = None
    deepstack_features: list[Pooled] | None = None  # Qwen3-VL's
    visual_indicator_features: Tensor | None = None  # Ovis2's, of the tokens around an image


def is_frozen(model: nn.Module) -> bool:
    """Whether neither tower nor projector is trained; False for a family whose modules are not known."""
    family = FAMILIES.get(model_config(model).model_type)
    if family is None:
        return False
    parts = {part_of(name, family) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return not parts & {"vision tower", "projector"}


def tower_of(backbone: nn.Module) -> Callable[..., ImageFeatures]:
    """Return the method by which a model of transformers runs its vision tower."""
    return cast("Callable[..., ImageFeatures]", backbone.get_image_features)


def cache_features(
    backbone: nn.Module, samples: Sequence[EncodedPrompt], place: Callable[[ModelInputs], ModelInputs]
) -> None:
    """Run the tower for the samples with images that have no features yet; prompts with the same images share them."""
    run_tower = tower_of(backbone)
    taken = set(inspect.signature(run_tower).parameters)
    known = {image_keys(sample): sample.features for sample in samples if sample.features is not None}
    for sample in samples:
        if sample.features is None and PIXELS in sample.visual:
            if image_keys(sample) not in known:
                given = place({name: value for name, value in sample.visual.items() if name in taken})
                with torch.no_grad():
                    known[image_keys(sample)] = run_tower(**given, return_dict=True)
            sample.features = known[image_keys(sample)]


def image_keys(sample: EncodedPrompt) -> tuple[Hashable, ...]:
    """The images of a row: equal for rows that show the same ones in the same order."""
    return tuple(ref.key for ref in sample.refs)


def with_features(inputs: ModelInputs, samples: Sequence[EncodedPrompt]) -> ModelInputs:
    """Forward arguments in which the features of the rows' images stand for their pixels.

    As they were if some row's features are missing.
    """
    with_images = [sample for sample in samples if PIXELS in sample.visual]
    if not with_images or any(sample.features is None for sample in with_images):
        return inputs
    rest = {name: value for name, value in inputs.items() if name != PIXELS}
    return {**rest, "mm_encoder_outputs": {"image": concat_features([sample.features for sample in with_images])}}


def concat_features(features: Sequence[ImageFeatures]) -> ImageFeatures:
    """Features of several prompts as those of one batch; Qwen3-VL's deepstack features and Ovis2's marks belong."""
    pooled = _join([one.pooler_output for one in features if one.pooler_output is not None])
    layers = [getattr(one, "deepstack_features", None) for one in features]
    deep = None if layers[0] is None else [_join(list(layer)) for layer in zip(*layers, strict=True)]
    return ImageFeatures(pooler_output=pooled, deepstack_features=deep, **_marks(features[0]))


def _marks(features: ImageFeatures) -> ModelInputs:
    """Ovis2's features of the tokens around an image: the same for all images."""
    name = "visual_indicator_features"
    return {name: getattr(features, name)} if hasattr(features, name) else {}


def _join(values: Sequence[Pooled]) -> Pooled:
    """Tensors along their first dimension, lists one after another."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors:
        return torch.cat(tensors)
    return [item for value in values for item in value]


def visual_inputs(model: nn.Module, samples: Sequence[EncodedPrompt]) -> ModelInputs:
    """Visual forward arguments of some rows for as few passes through the tower as possible."""
    once = tower_once(model, samples) if any(sample.features is None for sample in samples if sample.visual) else None
    return with_features(collate_visual(samples), samples) if once is None else once


def tower_once(model: nn.Module, samples: Sequence[EncodedPrompt]) -> ModelInputs | None:
    """Visual forward arguments of rows that show images several times, of which `run_tower_once` makes features.

    The pixels of each set of images are there once, everything else for each row. None where nothing comes twice, or
    where it cannot be done.
    """
    mark = getattr(model_config(model), "image_token_id", None)
    with_images = [sample for sample in samples if sample.visual]
    prompts = list({image_keys(sample): sample for sample in with_images}.values())
    if mark is None or any(sample.videos or PIXELS not in sample.visual for sample in prompts):
        return None
    number = {image_keys(prompt): place for place, prompt in enumerate(prompts)}
    rows = [number[image_keys(sample)] for sample in with_images]
    if len(rows) == len(prompts):
        return None
    rest = [replace(sample, visual={k: v for k, v in sample.visual.items() if k != PIXELS}) for sample in samples]
    counts = [row_ids(prompt).count(mark) for prompt in prompts]
    return {**collate_visual(rest), TOWER: {"visual": collate_visual(prompts), "counts": counts, "rows": rows}}


def run_tower_once(backbone: nn.Module, args: tuple, kwargs: ModelInputs) -> tuple[tuple, ModelInputs] | None:
    """Forward pre-hook of the backbone: the features of each prompt, repeated for its rows."""
    asked = kwargs.get(TOWER)
    if asked is None:
        return None
    run_tower = tower_of(backbone)
    taken = set(inspect.signature(run_tower).parameters)
    given = {name: value for name, value in asked["visual"].items() if name in taken}
    found = run_tower(**given, return_dict=True)
    counts, rows = asked["counts"], asked["rows"]
    deep = getattr(found, "deepstack_features", None)
    repeated = ImageFeatures(
        pooler_output=None if found.pooler_output is None else _repeat(found.pooler_output, counts, rows),
        deepstack_features=None if deep is None else [_repeat(layer, counts, rows) for layer in deep],
        **_marks(found),
    )
    rest = {name: value for name, value in kwargs.items() if name != TOWER}
    return args, {**rest, "mm_encoder_outputs": {"image": repeated}}


def _repeat(features: Pooled, counts: list[int], rows: list[int]) -> Pooled:
    """Features of prompts with so many image tokens, for rows of these prompts, in the container that was given."""
    flat = features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat(list(features))  # (tokens, D)
    parts = flat.split(counts)
    repeated = torch.cat([parts[row] for row in rows])
    return repeated if isinstance(features, Tensor) else [repeated]
