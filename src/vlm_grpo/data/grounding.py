"""Questions about boxes, as rows of the conversations form, from COCO's and RefCOCO's annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlm_grpo.boxes import Box, convert
from vlm_grpo.data.coco import CocoImage, CocoObject, Instances
from vlm_grpo.data.images import image_size
from vlm_grpo.data.paths import in_folder
from vlm_grpo.data.problems import Problem
from vlm_grpo.data.refs import Ref
from vlm_grpo.records import ImageRef

Row = dict[str, Any]


def referring_rows(refs: Sequence[Ref], instances: Instances, *, first_only: bool = False) -> Iterator[Row]:
    """A `rec` row for each expression, or for the first one of each reference; the box in pixels of the original."""
    for ref in refs:
        target = instances.objects[ref.object_id]
        for said in ref.sentences[:1] if first_only else ref.sentences:
            row = _box_row(f"ref{ref.id}_sent{said.id}", said.text, target, instances)
            yield {**row, "ref_id": ref.id}


def category_rows(instances: Instances) -> Iterator[Row]:
    """A `rec` row for each category that occurs exactly once in an image, and not as a crowd."""
    for found in _by_image_and_category(instances):
        if len(found) == 1:
            target = found[0]
            name = instances.categories[target.category_id]
            yield _box_row(f"image{target.image_id}_ann{target.id}", f"the {name}", target, instances)


def detection_rows(instances: Instances) -> Iterator[Row]:
    """An `ovd` row for each category in an image with all its boxes, 0 to 1000; none where some are a crowd."""
    for found in _by_image_and_category(instances):
        image, category = instances.images[found[0].image_id], found[0].category_id
        boxes = [{"Position": _thousandths(one.box, image), "Confidence": 1.0} for one in found]
        question = f"Find every {instances.categories[category]} in the image."
        row = _row(f"image{image.id}_category{category}", question, boxes, image)
        yield {**row, "task": "ovd", "box_space": "thousand", "category": instances.categories[category]}


def _by_image_and_category(instances: Instances) -> Iterator[list[CocoObject]]:
    """The objects of each category in each image, where all of them are annotated one by one."""
    found: dict[tuple[int, int], list[CocoObject]] = {}
    for one in instances.objects.values():
        found.setdefault((one.image_id, one.category_id), []).append(one)
    for key in sorted(found):
        if key not in instances.unusable and not any(one.is_crowd for one in found[key]):
            yield found[key]


def _box_row(name: str, question: str, target: CocoObject, instances: Instances) -> Row:
    row = _row(name, question, {"bbox_2d": list(target.box)}, instances.images[target.image_id])
    category = instances.categories[target.category_id]
    return {**row, "task": "rec", "box_space": "original", "ann_id": target.id, "category": category}


def _row(name: str, question: str, answer: Any, image: CocoImage) -> Row:
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    size = {"width": image.width, "height": image.height}
    return {"id": name, "image": image.file_name, "conversations": turns, "image_id": image.id, **size}


def _thousandths(box: Box, image: CocoImage) -> list[int]:
    """Whole numbers from 0 to 1000 of each side; a thin box keeps at least one."""
    x1, y1, x2, y2 = (round(side) for side in convert(box, "original", "thousand", (image.width, image.height)))
    x1, y1 = min(x1, 999), min(y1, 999)
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


def size_problems(rows: Sequence[Row], instances: Instances, folder: str) -> Iterator[tuple[int, Problem]]:
    """The id of each image that is missing, unreadable or of another size than annotated, and the problem."""
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
