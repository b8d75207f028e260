"""Rows of ms-swift's jsonl: `messages`, `images`, and `objects` with the boxes behind `<bbox>` marks.

Format: https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html (standard format, grounding).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator

from vlm_grpo.data.converters._common import (
    IMAGES,
    SPEAKERS,
    build_conversation,
    image_column,
    image_list,
    other_columns,
    roles_and_texts,
)
from vlm_grpo.data.converters.roundtrip import UnsupportedField
from vlm_grpo.data.images import URL_STARTS
from vlm_grpo.data.paths import in_folder
from vlm_grpo.records import NewRow, Row

SPACES = {"real": "original", "norm1": "unit", "norm1000": "thousand"}
TYPES = {space: kind for kind, space in SPACES.items()}
MARK = re.compile(r"<bbox>|<ref-object>")
FORMAT_COLUMNS = ("messages", "images", "objects")
JSONL_COLUMNS = ("conversations", *IMAGES)
BOXES = ("box_space", "box_image")


def to_jsonl(row: Row, folder: str) -> NewRow:
    """Convert a row to the conversations format; boxes replace their marks and become the answer.

    Paths of images inside `folder` become relative to it.
    """
    pairs = list(_pairs(row.get("messages")))
    images = row.get("images") or []
    images = images if isinstance(images, list) else [images]
    for image in images:
        if not isinstance(image, str):
            raise UnsupportedField("images", image, "paths or URLs; ms-swift's {bytes, path} belongs in a parquet file")
    place: Row = {}
    if row.get("objects") is not None:
        pairs, place = _with_boxes(pairs, row["objects"])
    names = [_inside(folder, image) for image in images]
    columns = other_columns(row, FORMAT_COLUMNS, JSONL_COLUMNS)
    return {**columns, **image_column(names), "conversations": build_conversation(pairs), **place}


def from_jsonl(row: Row, folder: str) -> NewRow:
    """Convert a row to ms-swift: boxes of the answer (`bbox_2d`) move to `objects`, paths become absolute."""
    pairs = roles_and_texts(row)
    images = image_list(row)
    paths = [image for image in images if isinstance(image, str)]
    for image in images:
        if not isinstance(image, str):
            raise UnsupportedField("image", image, "a path or URL")
    converted: NewRow = {"messages": [{"role": role, "content": text} for role, text in pairs]}
    if images:
        converted["images"] = [_absolute(folder, path) for path in paths]
    used_columns: tuple[str, ...] = JSONL_COLUMNS
    last = row["conversations"][-1]
    answer = last.get("value", last.get("content"))
    boxes: list[object] = []
    if pairs[-1][0] == "assistant" and isinstance(answer, dict | list):
        text = json.dumps(_mark_boxes(answer, boxes), ensure_ascii=False)
        if boxes:
            converted["messages"][-1]["content"] = text.replace('"<bbox>"', "<bbox>")
            converted["objects"] = {"ref": [], "bbox": boxes, **_space(row, len(boxes))}
            used_columns = (*JSONL_COLUMNS, *BOXES)
    return {**other_columns(row, used_columns, FORMAT_COLUMNS), **converted}


def _pairs(messages: object) -> Iterator[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise UnsupportedField("messages", messages, "a list of messages")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in SPEAKERS:
            raise UnsupportedField(f"messages[{number}].role", role, f"one of {', '.join(SPEAKERS)}")
        if not isinstance(message.get("content"), str):
            raise UnsupportedField(f"messages[{number}].content", message.get("content"), "text")
        yield role, message["content"]


def _with_boxes(pairs: list[tuple[str, str]], objects: object) -> tuple[list[tuple[str, str]], Row]:
    """Return the conversation with marks replaced by boxes and names, and the columns of the box space."""
    boxes, names, place = _objects(objects)
    marks = [mark for _, text in pairs for mark in MARK.findall(text)]
    if (marks.count("<bbox>"), marks.count("<ref-object>")) != (len(boxes), len(names)):
        raise UnsupportedField(
            "objects", f"{len(boxes)} boxes, {len(names)} names", "as many as <bbox> and <ref-object> marks"
        )
    questions = pairs if pairs[-1][0] == "user" else pairs[:-1]
    if any("<bbox>" in text for _, text in questions):
        expected = "boxes in the last answer only; others would not be converted to the space of the model"
        raise UnsupportedField("messages", "<bbox> in a question", expected)
    queues = {"<bbox>": iter(boxes), "<ref-object>": iter(names)}
    filled = [(role, _fill_marks(text, queues)) for role, text in pairs[:-1]]
    role, text = pairs[-1]
    filled.append((role, _answer(text, queues) if "<bbox>" in text else _fill_marks(text, queues)))
    return filled, place if boxes else {}


def _objects(objects: object) -> tuple[list[object], list[str], Row]:
    """Return boxes, names and the columns with the coordinate space and image of the boxes."""
    if not isinstance(objects, dict):
        raise UnsupportedField("objects", objects, '{"ref": [...], "bbox": [...]}')
    kind = objects.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in SPACES:
        raise UnsupportedField("objects.bbox_type", kind, f"one of {', '.join(SPACES)}")
    boxes, names, numbers = (objects.get(name) or [] for name in ("bbox", "ref", "image_id"))
    if not isinstance(boxes, list) or not all(map(_is_box, boxes)):
        raise UnsupportedField("objects.bbox", boxes, "boxes of four numbers; points have no counterpart")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnsupportedField("objects.ref", names, "a list of names")
    if not isinstance(numbers, list) or any(number != numbers[0] for number in numbers):
        raise UnsupportedField("objects.image_id", numbers, "boxes on one image")
    return boxes, names, {"box_space": SPACES[kind], **({"box_image": numbers[0]} if numbers else {})}


def _fill_marks(text: str, queues: dict[str, Iterator[object]]) -> str:
    """Return the text with its marks replaced by names, or by boxes as JSON."""

    def behind(match: re.Match[str]) -> str:
        value = next(queues[match[0]])
        return value if isinstance(value, str) else json.dumps(value)

    return MARK.sub(behind, text)


def _answer(text: str, queues: dict[str, Iterator[object]]) -> str:
    """Return the answer as JSON; marks without other text become one box or a list of boxes."""
    if not MARK.sub("", text).strip(" ,\n"):
        boxes: list[Row] = []
        name = None
        for mark in MARK.findall(text):
            if mark == "<ref-object>":
                name = next(queues[mark])
            else:
                boxes.append({"bbox_2d": next(queues[mark]), **({} if name is None else {"label": name})})
        return json.dumps(boxes[0] if len(boxes) == 1 else boxes, ensure_ascii=False)
    filled = _fill_marks(text, queues)
    try:
        return json.dumps(json.loads(filled), ensure_ascii=False)
    except ValueError:
        raise UnsupportedField("messages", text, "an answer that is only <bbox> marks, or JSON around them") from None


def _mark_boxes(value: object, boxes: list[object]) -> object:
    """Return the answer with a mark in place of every `bbox_2d`; append the boxes to `boxes`."""
    if isinstance(value, list):
        return [_mark_boxes(item, boxes) for item in value]
    if not isinstance(value, dict):
        return value
    converted = {}
    for key, item in value.items():
        is_box = key == "bbox_2d" and _is_box(item)
        converted[key] = "<bbox>" if is_box else _mark_boxes(item, boxes)
        boxes += [item] if is_box else []
    return converted


def _is_box(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(side) in (int, float) and math.isfinite(side) for side in value)


def _space(row: Row, boxes: int) -> NewRow:
    space = row.get("box_space") or "original"
    if not isinstance(space, str) or space not in TYPES:
        raise UnsupportedField("box_space", space, f"one of {', '.join(TYPES)}")
    number = row.get("box_image")
    return {"bbox_type": TYPES[space], **({} if number is None else {"image_id": [number] * boxes})}


def _inside(folder: str, path: str) -> str:
    """Return a path inside the folder relative to it; any other path unchanged."""
    root = os.path.abspath(folder) if folder else ""
    inside = folder and os.path.isabs(path) and os.path.normpath(path).startswith(root + os.sep)
    return os.path.relpath(path, root) if inside else path


def _absolute(folder: str, path: str) -> str:
    return path if not folder or path.startswith((*URL_STARTS, "data:")) else os.path.abspath(in_folder(folder, path))
