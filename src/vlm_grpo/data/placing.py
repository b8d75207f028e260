"""Whether true boxes lie in their images, in the coordinate space that their rows name. Reads headers of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlm_grpo.answer_parser import ground_truth_text
from vlm_grpo.boxes import Box, boxes_in
from vlm_grpo.data.forms import Reading
from vlm_grpo.data.images import URL_STARTS, image_size
from vlm_grpo.data.problems import Problem, show_value
from vlm_grpo.data.targets import BOX_TASKS, DETECTION_TASKS
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.rewards.detection import parse_target_detections

SLACK = 0.02  # of a side, and two pixels: annotators draw over the edge
ENOUGH = 20  # boxes on images of more than 1000 pixels, before a file is said to count from 0 to 1000
THOUSAND = 1000


@dataclass
class BoxPlaces:
    """Looks at the boxes of one file. Of all of them together it only warns."""

    on_large: int = 0  # boxes on images that are larger than 1000 pixels both ways
    farthest: float = 0.0  # of their coordinates

    def problems(self, reading: Reading) -> Iterator[Problem]:
        """Yield what is wrong with the boxes of a row; nothing where its image cannot be read."""
        record = reading.record
        if record is None or (record.extra.get("box_space") or "original") != "original":
            return
        boxes = true_boxes(record)
        number = record.extra.get("box_image") or 0
        size = _size(record.images[number]) if boxes and number < len(record.images) else None
        if size is None:
            return
        for box in boxes:
            if expected := place_fault(box, size):
                yield Problem(record.where, "answer", show_value(record.answer), expected)
                return
        if min(size) > THOUSAND:
            self.on_large += len(boxes)
            self.farthest = max(self.farthest, *(max(box) for box in boxes))

    def warnings(self, name: str) -> list[Problem]:
        """Return what all boxes together look like."""
        if self.on_large < ENOUGH or self.farthest > THOUSAND:
            return []
        found = f"none of {self.on_large:,} boxes on images of over 1000 pixels goes beyond {self.farthest:g}"
        expected = 'pixels of the original image; for coordinates from 0 to 1000 add "box_space": "thousand"'
        return [Problem(name, "answer", found, expected, is_warning=True)]


def true_boxes(record: Record) -> list[Box]:
    """Return the true boxes of a record that are in the space of its column `box_space`."""
    if record.answer is None:
        return []
    if record.task in DETECTION_TASKS:
        return [
            item.box for item in parse_target_detections(ground_truth_text(record.answer)) or [] if not item.is_thousand
        ]
    return boxes_in(ground_truth_text(record.answer)) if record.task in BOX_TASKS else []


def place_fault(box: Box, size: tuple[int, int]) -> str | None:
    """Return what was expected of a box that cannot be meant in pixels of an image of this size."""
    width, height = size
    image = f"a box in pixels of its image, {width} x {height}"
    if max(box) <= 1 and box.area:
        return f'{image}; for coordinates from 0 to 1 add "box_space": "unit"'
    if box.x2 <= width * (1 + SLACK) + 2 and box.y2 <= height * (1 + SLACK) + 2:
        return None
    hint = '; for coordinates from 0 to 1000 add "box_space": "thousand"' if max(box) <= THOUSAND else ""
    return f"{image}{hint}"


def _size(ref: ImageRef) -> tuple[int, int] | None:
    if isinstance(ref.source, str) and ref.source.startswith(URL_STARTS):
        return None
    try:
        return image_size(ref)
    except ValueError:
        return None  # a problem of the image, which is named elsewhere
