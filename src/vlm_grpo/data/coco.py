"""COCO's annotation files (`instances_*.json`, RefCOCO's `instances.json`): checked, with boxes as corners in pixels.

Format: https://cocodataset.org/#format-data; a box is x, y of its upper left corner, width, height.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_grpo.boxes import Box
from vlm_grpo.data.jsonl import unreadable
from vlm_grpo.data.problems import DataError, Problem, show_value
from vlm_grpo.file_checks import check_regular

SLACK = 1.0  # pixels by which a box may pass the border before it counts as wrong; it is cut off there
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
    """What an annotation file holds, by id, and what is wrong with the rest of it.

    `unusable` has the ids of (image, category) pairs with an annotation that is left out: they cannot be counted.
    """

    name: str
    images: dict[int, CocoImage] = field(default_factory=dict)
    objects: dict[int, CocoObject] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unusable: set[tuple[int, int]] = field(default_factory=set)


def read_instances(path: str | Path) -> Instances:
    """The images, objects and categories of a file; every entry that is wrong is a Problem and left out.

    Raises:
        DataError: the file is missing, is no JSON, or has no images, annotations and categories.
    """
    content = _load(Path(path))
    found = Instances(str(path))
    for index, entry in enumerate(content["categories"]):
        _take(found, "categories", index, entry)
    for index, entry in enumerate(content["images"]):
        _take(found, "images", index, entry)
    for index, entry in enumerate(content["annotations"]):
        _take(found, "annotations", index, entry)
    return found


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        check_regular(path)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError([unreadable(path, error)]) from error
    except (ValueError, RecursionError) as error:
        raise DataError([Problem(str(path), "file", str(error), "COCO annotations as JSON")]) from error
    if not isinstance(content, dict):
        raise DataError([Problem(str(path), "file", type(content).__name__, f"an object with {', '.join(PARTS)}")])
    wrong = [name for name in PARTS if not isinstance(content.get(name), list)]
    if wrong:
        found = f"keys {', '.join(map(str, content)) or 'none'}"
        raise DataError([Problem(str(path), name, found, "a list under this key") for name in wrong])
    return content


def _take(found: Instances, part: str, index: int, entry: Any) -> None:
    """Put an entry where it belongs, or note what is wrong with it."""
    known: dict[int, Any] = {"images": found.images, "annotations": found.objects, "categories": found.categories}[part]
    where = f"{found.name} {part}[{index}]"
    if not isinstance(entry, Mapping) or type(entry.get("id")) is not int:
        shown = show_value(entry.get("id") if isinstance(entry, Mapping) else entry)
        found.problems.append(Problem(where, "id", shown, "an object with a whole number as id"))
        return
    where = f"{where} (id {entry['id']})"
    complaints = [("id", str(entry["id"]), "each id once")] if entry["id"] in known else []
    complaints += CHECKS[part](entry, found)
    found.problems.extend(Problem(where, *complaint) for complaint in complaints)
    if not complaints:
        known[entry["id"]] = MAKERS[part](entry, found)
    elif part == "annotations" and all(type(entry.get(name)) is int for name in ("image_id", "category_id")):
        found.unusable.add((entry["image_id"], entry["category_id"]))


Complaint = tuple[str, str, str]  # field, found, expected


def _category_complaints(entry: Mapping[str, Any], found: Instances) -> Iterator[Complaint]:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        yield "name", show_value(name), "the name of a category"


def _image_complaints(entry: Mapping[str, Any], found: Instances) -> Iterator[Complaint]:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        yield "file_name", show_value(name), "the name of an image file"
    for side in ("width", "height"):
        if type(entry.get(side)) is not int or entry[side] < 1:
            yield side, show_value(entry.get(side)), "a whole number of pixels"


def _object_complaints(entry: Mapping[str, Any], found: Instances) -> Iterator[Complaint]:
    image = found.images.get(entry["image_id"]) if type(entry.get("image_id")) is int else None
    if image is None:
        yield "image_id", show_value(entry.get("image_id")), "the id of an image of this file"
    if type(entry.get("category_id")) is not int or entry["category_id"] not in found.categories:
        yield "category_id", show_value(entry.get("category_id")), "the id of a category of this file"
    box = entry.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not numbers or not all(map(math.isfinite, box)):
        yield "bbox", show_value(box), "four numbers: x, y, width, height"
    elif image is not None:
        yield from _outside(box, image)


def _outside(box: list[float], image: CocoImage) -> Iterator[Complaint]:
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield "bbox", show_value(box), "a width and a height above 0"
    elif min(x, y) < -SLACK or x + width > image.width + SLACK or y + height > image.height + SLACK:
        yield "bbox", show_value(box), f"a box inside its image of {image.width} x {image.height} pixels"


def _object(entry: Mapping[str, Any], found: Instances) -> CocoObject:
    image = found.images[entry["image_id"]]
    x, y, width, height = entry["bbox"]
    right, bottom = min(x + width, image.width), min(y + height, image.height)
    box = Box(*(round(side, 2) for side in (max(x, 0), max(y, 0), right, bottom)))  # COCO gives two decimals
    return CocoObject(entry["id"], image.id, entry["category_id"], box, bool(entry.get("iscrowd", 0)))


CHECKS = {"categories": _category_complaints, "images": _image_complaints, "annotations": _object_complaints}
MAKERS = {
    "categories": lambda entry, found: entry["name"],
    "images": lambda entry, found: CocoImage(entry["id"], entry["file_name"], entry["width"], entry["height"]),
    "annotations": _object,
}
