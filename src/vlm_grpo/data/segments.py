"""COCO's segmentations as rows of the task `seg`: a question, the mask as RLE, its shape as the answer.

A segmentation is a list of polygons in pixels (their union is meant), or RLE (https://cocodataset.org/#format-data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_grpo.data.coco import CocoImage, CocoObject, Instances
from vlm_grpo.data.problems import Problem, show_value
from vlm_grpo.masks import encode_mask, fit_iou, read_rle, write_rle
from vlm_grpo.masks.raster import regions_to_mask

BEYOND = 10.0  # pixels by which a polygon may leave its image; what does is cut off
FORM = "polygons [[x1, y1, x2, y2, ...], ...] or RLE"
Row = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """One object to ask for, by a question that fits no other object of its image."""

    target: CocoObject
    image: CocoImage
    category: str
    question: str
    segmentation: Any
    where: str


@dataclass(frozen=True)
class ShapeOptions:
    """How masks become rows; `min_area` in pixels, `min_fit` an IoU."""

    codec: str = "chebyshev"
    terms: int = 8
    starts: int = 1
    min_area: int = 100
    min_fit: float = 0.0


class Made(NamedTuple):
    """What became of a segment: a row, or a problem, or neither (`reason` says why it was left out)."""

    row: Row | None = None
    problem: Problem | None = None
    reason: str | None = None


def segments(instances: Instances, path: str | Path, most: int) -> Iterator[Segment]:
    """Each object whose category occurs at most `most` times in its image, and never as a crowd, image by image.

    The only one is `the dog`; of several each is named by its place from the left. `path` is the file that
    `instances` was read from: its segmentations are read now.
    """
    entries = json.loads(Path(path).read_bytes())["annotations"]
    places = {entry["id"]: index for index, entry in enumerate(entries) if _is_known(entry, instances)}
    found: dict[tuple[int, int], list[CocoObject]] = {}
    for one in instances.objects.values():
        found.setdefault((one.image_id, one.category_id), []).append(one)
    for key in sorted(found):
        if key in instances.unusable or any(one.is_crowd for one in found[key]) or len(found[key]) > most:
            continue
        ordered = sorted(found[key], key=lambda one: (one.box.x1 + one.box.x2, one.id))
        for number, target in enumerate(ordered, 1):
            name, index = instances.categories[target.category_id], places[target.id]
            where = f"{instances.name} annotations[{index}] (id {target.id})"
            question = _question(name, number, len(ordered))
            image = instances.images[target.image_id]
            yield Segment(target, image, name, question, entries[index].get("segmentation"), where)


def _is_known(entry: Any, instances: Instances) -> bool:
    return isinstance(entry, Mapping) and type(entry.get("id")) is int and entry["id"] in instances.objects


def _question(name: str, number: int, count: int) -> str:
    return f"the {name}" if count == 1 else f"the {name} that is number {number} of {count}, counted from the left"


def make_row(segment: Segment, options: ShapeOptions) -> Made:
    """The row of a segment. Boxes are 0 to 1000 of each side, `fit_iou` is what the answer itself would earn."""
    image, target = segment.image, segment.target
    try:
        mask = segmentation_mask(segment.segmentation, image.height, image.width)
    except ValueError as error:
        return Made(problem=Problem(segment.where, "segmentation", show_value(segment.segmentation), str(error)))
    if mask.sum() < max(1, options.min_area):
        return Made(reason=f"smaller than {options.min_area} pixels")
    shape = encode_mask(mask, options.codec, options.terms, options.starts)
    fit = fit_iou(mask, shape)
    if fit < options.min_fit:
        return Made(reason=f"a fit below {options.min_fit}")
    turns = [{"from": "human", "value": f"<image>{segment.question}"}, {"from": "gpt", "value": shape}]
    row = {"id": f"image{image.id}_ann{target.id}", "image": image.file_name, "task": "seg", "conversations": turns}
    known = {"category": segment.category, "image_id": image.id, "ann_id": target.id, "terms": options.terms}
    return Made({**row, **known, "box_space": "thousand", "fit_iou": round(fit, 4), "mask": write_rle(mask)})


def segmentation_mask(value: Any, height: int, width: int) -> np.ndarray:
    """The mask, (height, width) of bool, of a segmentation, filled as COCO's own tools fill it.

    Raises:
        ValueError: it is none, or belongs to an image of another size; says what must hold.
    """
    from pycocotools import mask as coco

    if isinstance(value, Mapping):
        truth = read_rle(value)
        if (truth.height, truth.width) != (height, width):
            raise ValueError(f"RLE of {height} x {width} pixels (height, width), as the image has")
        return regions_to_mask([truth.boundaries], height, width)
    if not isinstance(value, list) or not value or not all(_is_polygon(one) for one in value):
        raise ValueError(f"{FORM}, each polygon with at least three points")
    for polygon in value:
        points = np.array(polygon, dtype=float).reshape(-1, 2)
        if points.min() < -BEYOND or (points.max(axis=0) > [width + BEYOND, height + BEYOND]).any():
            raise ValueError(f"points inside the image of {width} x {height} pixels")
    return coco.decode(coco.merge(coco.frPyObjects(value, height, width))).astype(bool)


def _is_polygon(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(one) in (int, float) and math.isfinite(one) for one in value)
    return numbers and len(value) >= 6 and len(value) % 2 == 0
