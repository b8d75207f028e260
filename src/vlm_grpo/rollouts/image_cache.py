"""An image processor that processes every image once, however many prompts contain it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.video import join_dimension


@dataclass
class Counters:
    """How often an image or video was decoded and processed since the trainer was built."""

    decoded: int = 0
    processed: int = 0


ImageProcessor = Callable[..., BatchFeature]


class CachedImageProcessor:
    """An image processor that runs once per image, however many prompts contain it.

    The encoder sets `expected_keys`, the keys of the images of the next call. Each new image is processed alone, so
    that the result does not depend on its neighbours, and the results are concatenated in the order of the call.
    """

    def __init__(self, inner: ImageProcessor, counters: Counters) -> None:
        self.inner = inner
        self.counters = counters
        self.expected_keys: list[Hashable] = []
        self.results: dict[Hashable, BatchFeature] = {}
        self.needs_whole_prompt = False  # whether this family's output for one prompt has a dimension of images

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, images: object, **options: object) -> BatchFeature:
        # Several families (LLaVA, InternVL, Gemma3) return lists of arrays unless they are asked for tensors.
        options = {**options, "return_tensors": "pt"}
        flat = _flatten(images)
        if len(flat) != len(self.expected_keys):
            raise RuntimeError(f"{len(self.expected_keys)} images were expected, the processor passed {len(flat)}")
        joined = self._process_each(flat, options)
        if joined is None:  # this family pads the images of one prompt to a common shape
            self.counters.processed += len(flat)
            return self.inner(images, **options)
        return joined

    def _process_each(self, flat: Sequence[object], options: Mapping[str, object]) -> BatchFeature | None:
        if self.needs_whole_prompt and len(flat) > 1:
            return None
        parts = [self._process_image(key, image, options) for key, image in zip(self.expected_keys, flat, strict=True)]
        self.needs_whole_prompt = any(value.ndim == 5 for value in parts[0].values() if isinstance(value, Tensor))
        return _join(parts)

    def _process_image(self, key: Hashable, image: object, options: Mapping[str, object]) -> BatchFeature:
        if key not in self.results:
            self.results[key] = self.inner([image], **options)
            self.counters.processed += 1
        return self.results[key]


def _flatten(images: object) -> list[object]:
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flatten(part)]
    return [images]


def _join(parts: Sequence[BatchFeature]) -> BatchFeature | None:
    """Concatenate single-image results along their first dimension; None where shapes do not allow it."""
    if len(parts) == 1:
        return parts[0]
    joined: ModelInputs = {}
    for name, first in parts[0].items():
        values, dimension = [part[name] for part in parts], join_dimension(name, parts[0])
        if isinstance(first, Tensor):
            if dimension == 0 and (first.ndim == 5 or len({value.shape[1:] for value in values}) > 1):
                return None
            joined[name] = torch.cat(values, dimension)
        else:
            joined[name] = [item for value in values for item in value]
    return BatchFeature(joined)
