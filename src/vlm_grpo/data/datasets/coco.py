"""Read and validate COCO annotation files, and build rows of the tasks `rec`, `ovd` and `seg` from them.

Format: https://cocodataset.org/#format-data; a box is x, y of its upper left corner, width, height. A segmentation is a
list of polygons in pixels (their union is meant), or RLE. Boxes here are corners in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_grpo.boxes import Box, convert
from vlm_grpo.data.errors import DataError, FieldProblem, Problem, show_value
from vlm_grpo.data.images import image_size
from vlm_grpo.data.paths import in_folder
from vlm_grpo.data.readers.text_files import unreadable
from vlm_grpo.file_checks import check_regular
from vlm_grpo.masks import encode_mask, fit_iou, read_rle, write_rle
from vlm_grpo.masks.raster import regions_to_mask
from vlm_grpo.records import ImageRef, JsonObject, NewRow, Row

SLACK = 1.0  # pixels by which a box may exceed its image; larger excess is an error, smaller is clipped
PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image, its size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One annotated object; `box` in pixels of its image. A crowd is several objects in one annotation."""

    id: int
    image_id: int
    category_id: int
    box: Box
    is_crowd: bool


@dataclass(frozen=True)
class Instances:
    """The valid entries of an annotation file by id, and the problems of the others.

    `unusable` has the (image, category) pairs with a skipped annotation: their objects cannot be counted.
    """

    name: str
    images: dict[int, CocoImage] = field(default_factory=dict)
    objects: dict[int, CocoObject] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unusable: set[tuple[int, int]] = field(default_factory=set)

    def entries(self, part: str) -> dict[int, Any]:
        """Return the entries of one of PARTS, by id."""
        parts: dict[str, dict[int, Any]] = {
            "images": self.images,
            "annotations": self.objects,
            "categories": self.categories,
        }
        return parts[part]


def read_instances(path: str | Path) -> Instances:
    """Read images, objects and categories of a file; an invalid entry becomes a Problem and is skipped.

    Raises:
        DataError: the file is missing, is not JSON, or lacks images, annotations or categories.
    """
    content = _load(Path(path))
    instances = Instances(str(path))
    for index, entry in enumerate(content["categories"]):
        _add_entry(instances, "categories", index, entry)
    for index, entry in enumerate(content["images"]):
        _add_entry(instances, "images", index, entry)
    for index, entry in enumerate(content["annotations"]):
        _add_entry(instances, "annotations", index, entry)
    return instances


def _load(path: Path) -> dict[str, list[JsonObject]]:
    try:
        check_regular(path)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError([unreadable(path, error)]) from error
    except (ValueError, RecursionError) as error:
        raise DataError([Problem(str(path), "file", str(error), "COCO annotations as JSON")]) from error
    if not isinstance(content, dict):
        raise DataError([Problem(str(path), "file", type(content).__name__, f"an object with {', '.join(PARTS)}")])
    missing_parts = [name for name in PARTS if not isinstance(content.get(name), list)]
    if missing_parts:
        found = f"keys {', '.join(map(str, content)) or 'none'}"
        raise DataError([Problem(str(path), name, found, "a list under this key") for name in missing_parts])
    return content


def _add_entry(instances: Instances, part: str, index: int, entry: object) -> None:
    """Add an entry, or its problems."""
    entries = instances.entries(part)
    where = f"{instances.name} {part}[{index}]"
    if not isinstance(entry, Mapping) or type(entry.get("id")) is not int:
        value = show_value(entry.get("id") if isinstance(entry, Mapping) else entry)
        instances.problems.append(Problem(where, "id", value, "an object with a whole number as id"))
        return
    where = f"{where} (id {entry['id']})"
    problems = [("id", str(entry["id"]), "each id once")] if entry["id"] in entries else []
    problems += CHECKS[part](entry, instances)
    instances.problems.extend(Problem(where, *problem) for problem in problems)
    if not problems:
        entries[entry["id"]] = MAKERS[part](entry, instances)
    elif part == "annotations" and all(type(entry.get(name)) is int for name in ("image_id", "category_id")):
        instances.unusable.add((entry["image_id"], entry["category_id"]))


def _validate_category(entry: Row, instances: Instances) -> Iterator[FieldProblem]:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        yield "name", show_value(name), "the name of a category"


def _validate_image(entry: Row, instances: Instances) -> Iterator[FieldProblem]:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        yield "file_name", show_value(name), "the name of an image file"
    for side in ("width", "height"):
        if type(entry.get(side)) is not int or entry[side] < 1:
            yield side, show_value(entry.get(side)), "a whole number of pixels"


def _validate_object(entry: Row, instances: Instances) -> Iterator[FieldProblem]:
    image = instances.images.get(entry["image_id"]) if type(entry.get("image_id")) is int else None
    if image is None:
        yield "image_id", show_value(entry.get("image_id")), "the id of an image of this file"
    if type(entry.get("category_id")) is not int or entry["category_id"] not in instances.categories:
        yield "category_id", show_value(entry.get("category_id")), "the id of a category of this file"
    box = entry.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not isinstance(box, list) or not numbers or not all(map(math.isfinite, box)):
        yield "bbox", show_value(box), "four numbers: x, y, width, height"
    elif image is not None:
        yield from _outside(box, image)


def _outside(box: list[float], image: CocoImage) -> Iterator[FieldProblem]:
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield "bbox", show_value(box), "a width and a height above 0"
    elif min(x, y) < -SLACK or x + width > image.width + SLACK or y + height > image.height + SLACK:
        yield "bbox", show_value(box), f"a box inside its image of {image.width} x {image.height} pixels"


def _object(entry: Row, instances: Instances) -> CocoObject:
    image = instances.images[entry["image_id"]]
    x, y, width, height = entry["bbox"]
    right, bottom = min(x + width, image.width), min(y + height, image.height)
    box = Box(*(round(side, 2) for side in (max(x, 0), max(y, 0), right, bottom)))  # COCO gives two decimals
    return CocoObject(entry["id"], image.id, entry["category_id"], box, bool(entry.get("iscrowd", 0)))


CHECKS = {"categories": _validate_category, "images": _validate_image, "annotations": _validate_object}
MAKERS = {
    "categories": lambda entry, found: entry["name"],
    "images": lambda entry, found: CocoImage(entry["id"], entry["file_name"], entry["width"], entry["height"]),
    "annotations": _object,
}


def category_rows(instances: Instances) -> Iterator[NewRow]:
    """Yield a `rec` row for each category that occurs exactly once in an image, and not as a crowd."""
    for objects in _by_image_and_category(instances):
        if len(objects) == 1:
            target = objects[0]
            name = instances.categories[target.category_id]
            yield box_row(f"image{target.image_id}_ann{target.id}", f"the {name}", target, instances)


def detection_rows(instances: Instances) -> Iterator[NewRow]:
    """Yield an `ovd` row for each category in an image with all its boxes, 0 to 1000; skip categories with crowds."""
    for objects in _by_image_and_category(instances):
        image, category = instances.images[objects[0].image_id], objects[0].category_id
        boxes = [{"Position": _thousandths(target.box, image), "Confidence": 1.0} for target in objects]
        question = f"Find every {instances.categories[category]} in the image."
        row = _row(f"image{image.id}_category{category}", question, boxes, image)
        yield {**row, "task": "ovd", "box_space": "thousand", "category": instances.categories[category]}


def _by_image_and_category(instances: Instances) -> Iterator[list[CocoObject]]:
    """Yield the objects of each category in each image, if all of them are annotated individually."""
    groups: dict[tuple[int, int], list[CocoObject]] = {}
    for item in instances.objects.values():
        groups.setdefault((item.image_id, item.category_id), []).append(item)
    for key in sorted(groups):
        if key not in instances.unusable and not any(item.is_crowd for item in groups[key]):
            yield groups[key]


def box_row(name: str, question: str, target: CocoObject, instances: Instances) -> NewRow:
    row = _row(name, question, {"bbox_2d": list(target.box)}, instances.images[target.image_id])
    category = instances.categories[target.category_id]
    return {**row, "task": "rec", "box_space": "original", "ann_id": target.id, "category": category}


def _row(name: str, question: str, answer: object, image: CocoImage) -> NewRow:
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    size = {"width": image.width, "height": image.height}
    return {"id": name, "image": image.file_name, "conversations": turns, "image_id": image.id, **size}


def _thousandths(box: Box, image: CocoImage) -> list[int]:
    """Return the box as integers from 0 to 1000 per side; a thin box keeps a width and height of 1."""
    x1, y1, x2, y2 = (round(side) for side in convert(box, "original", "thousand", (image.width, image.height)))
    x1, y1 = min(x1, 999), min(y1, 999)
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


def size_problems(rows: Sequence[NewRow], instances: Instances, folder: str) -> Iterator[tuple[int, Problem]]:
    """Yield id and problem of each image that is missing, unreadable or has another size than annotated."""
    for number, path in {row["image_id"]: row["image"] for row in rows}.items():
        image = instances.images[number]
        where = f"{instances.name} image {number}"
        try:
            size = image_size(ImageRef(in_folder(folder, path), where))
        except ValueError as error:
            yield number, Problem(where, "image", str(error).removeprefix(f"{where}: "), "an image that can be read")
            continue
        if size != (image.width, image.height):
            found, expected = (
                f"{path} has {size[0]} x {size[1]} pixels",
                f"{image.width} x {image.height}, as annotated",
            )
            yield number, Problem(where, "size", found, expected)


OVERHANG = 10.0  # pixels by which a polygon may exceed its image, to which it is clipped
SEGMENTATION_FORMATS = "polygons [[x1, y1, x2, y2, ...], ...] or RLE"


@dataclass(frozen=True)
class Segment:
    """One object and a question that describes only this object."""

    target: CocoObject
    image: CocoImage
    category: str
    question: str
    segmentation: object
    where: str


@dataclass(frozen=True)
class ShapeOptions:
    """Settings for converting masks to rows; `min_area` is in pixels, `min_fit` an IoU."""

    codec: str = "chebyshev"
    terms: int = 8
    starts: int = 1
    min_area: int = 100
    min_fit: float = 0.0


class SegResult(NamedTuple):
    """Result of converting a segment: a row, a problem, or the `reason` for leaving it out."""

    row: NewRow | None = None
    problem: Problem | None = None
    reason: str | None = None


def segment_targets(instances: Instances, path: str | Path, max_same: int) -> Iterator[Segment]:
    """Yield each object whose category occurs at most `most` times in its image, and never as a crowd.

    A single object is `the dog`; several are numbered from the left. `path` is the file of `instances`, from which
    the segmentations are read now.
    """
    entries = json.loads(Path(path).read_bytes())["annotations"]
    places = {entry["id"]: index for index, entry in enumerate(entries) if _is_known(entry, instances)}
    groups: dict[tuple[int, int], list[CocoObject]] = {}
    for item in instances.objects.values():
        groups.setdefault((item.image_id, item.category_id), []).append(item)
    for key in sorted(groups):
        if key in instances.unusable or any(item.is_crowd for item in groups[key]) or len(groups[key]) > max_same:
            continue
        ordered = sorted(groups[key], key=lambda item: (item.box.x1 + item.box.x2, item.id))
        for number, target in enumerate(ordered, 1):
            name, index = instances.categories[target.category_id], places[target.id]
            where = f"{instances.name} annotations[{index}] (id {target.id})"
            question = _question(name, number, len(ordered))
            image = instances.images[target.image_id]
            yield Segment(target, image, name, question, entries[index].get("segmentation"), where)


def _is_known(entry: object, instances: Instances) -> bool:
    return isinstance(entry, Mapping) and type(entry.get("id")) is int and entry["id"] in instances.objects


def _question(name: str, number: int, count: int) -> str:
    return f"the {name}" if count == 1 else f"the {name} that is number {number} of {count}, counted from the left"


def seg_row(segment: Segment, options: ShapeOptions) -> SegResult:
    """Convert a segment to a row. Boxes are 0 to 1000 per side; `fit_iou` is the mask IoU of the gold answer."""
    image, target = segment.image, segment.target
    try:
        mask = segmentation_mask(segment.segmentation, image.height, image.width)
    except ValueError as error:
        return SegResult(problem=Problem(segment.where, "segmentation", show_value(segment.segmentation), str(error)))
    if mask.sum() < max(1, options.min_area):
        return SegResult(reason=f"smaller than {options.min_area} pixels")
    shape = encode_mask(mask, options.codec, options.terms, options.starts)
    fit = fit_iou(mask, shape)
    if fit < options.min_fit:
        return SegResult(reason=f"a fit below {options.min_fit}")
    turns = [{"from": "human", "value": f"<image>{segment.question}"}, {"from": "gpt", "value": shape}]
    row = {"id": f"image{image.id}_ann{target.id}", "image": image.file_name, "task": "seg", "conversations": turns}
    metadata = {"category": segment.category, "image_id": image.id, "ann_id": target.id, "terms": options.terms}
    return SegResult({**row, **metadata, "box_space": "thousand", "fit_iou": round(fit, 4), "mask": write_rle(mask)})


def segmentation_mask(value: object, height: int, width: int) -> np.ndarray:
    """Return the mask, bool (height, width), of a segmentation, filled as by COCO's own tools.

    Raises:
        ValueError: the segmentation is invalid or has another image size; the message says what was expected.
    """
    from pycocotools import mask as coco

    if isinstance(value, Mapping):
        truth = read_rle(value)
        if (truth.height, truth.width) != (height, width):
            raise ValueError(f"RLE of {height} x {width} pixels (height, width), as the image has")
        return regions_to_mask([truth.boundaries], height, width)
    if not isinstance(value, list) or not value or not all(_is_polygon(part) for part in value):
        raise ValueError(f"{SEGMENTATION_FORMATS}, each polygon with at least three points")
    for polygon in value:
        points = np.array(polygon, dtype=float).reshape(-1, 2)
        if points.min() < -OVERHANG or (points.max(axis=0) > [width + OVERHANG, height + OVERHANG]).any():
            raise ValueError(f"points inside the image of {width} x {height} pixels")
    return coco.decode(coco.merge(coco.frPyObjects(value, height, width))).astype(bool)


def _is_polygon(value: object) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in value)
