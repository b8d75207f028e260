"""Validate a whole data set before training: options, files, rows, images and videos. Imports no torch.

All problems are reported, each image file is read once, and gold boxes must be inside their images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlm_grpo.answer_parser import ground_truth_text
from vlm_grpo.boxes import Box, boxes_in
from vlm_grpo.data.errors import Problem, show_value
from vlm_grpo.data.images import (
    DECODE_ERRORS,
    URL_STARTS,
    check_sides,
    decode_error,
    image_size,
    media_name,
    media_source,
    open_image,
)
from vlm_grpo.data.mixture import file_shares
from vlm_grpo.data.parsing import ParsedRow, ReaderConfig, parse_raw_row
from vlm_grpo.data.readers import Source, open_sources
from vlm_grpo.data.target_validation import BOX_TASKS, DETECTION_TASKS
from vlm_grpo.data.videos import validate_video
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.rewards.detection import parse_target_detections

if TYPE_CHECKING:
    from datasets import Dataset


TAIL = 64  # bytes at the end of a file that must contain its end marker
END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}


def validate_image(ref: ImageRef, *, decode: bool = False) -> str | None:
    """Return the reason why `open_image` would fail for an image; None if it is valid.

    By default, header, end of file and PNG checksums are read; formats without an end marker are decoded.
    With `decode`, every image is decoded, and URLs are downloaded.
    """
    if isinstance(ref.source, Image.Image):
        return None
    is_url = isinstance(ref.source, str) and ref.source.startswith(URL_STARTS)
    if is_url and not decode:
        return None
    try:
        if is_url or not _looks_whole(ref) or decode:
            return _validate_by_decoding(ref)
    except DECODE_ERRORS as error:
        return decode_error(error)
    return None


def _validate_by_decoding(ref: ImageRef) -> str | None:
    try:
        open_image(ref)
    except ValueError as error:
        return decode_error(error.__cause__ or error)
    return None


def _looks_whole(ref: ImageRef) -> bool:
    """Return whether header and end of file are valid; False means that the image must be decoded to find out."""
    source = media_source(ref)
    with open(source, "rb") if isinstance(source, str) else source as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise OSError("the file is empty")
        file.seek(max(0, size - TAIL))
        tail = file.read()
        file.seek(0)
        with Image.open(file) as image:  # rejects decompression bombs by the size in the header
            check_sides(image)
            kind = image.format
            if kind == "PNG":
                image.verify()
    if kind == "WEBP":
        return True  # PIL has validated the whole container
    return kind in END_MARKS and END_MARKS[kind] in tail


SLACK = 0.02  # tolerance as a fraction of the side, plus two pixels: annotations may exceed the image slightly
MIN_BOXES = 20  # boxes on images of more than 1000 pixels that are needed for a warning about 0 to 1000
THOUSAND = 1000


@dataclass
class BoxPositionCheck:
    """Check that the boxes of a file are inside their images; warn about suspicious statistics of the whole file."""

    large_image_boxes: int = 0  # boxes on images larger than 1000 pixels in both directions
    largest_coordinate: float = 0.0  # of their coordinates

    def problems(self, parsed: ParsedRow) -> Iterator[Problem]:
        """Yield problems of the boxes of a row, unless its image cannot be read."""
        record = parsed.record
        if record is None or (record.extra.get("box_space") or "original") != "original":
            return
        boxes = true_boxes(record)
        number = record.extra.get("box_image") or 0
        size = _size(record.images[number]) if boxes and number < len(record.images) else None
        if size is None:
            return
        for box in boxes:
            if expected := validate_box_position(box, size):
                yield Problem(record.where, "answer", show_value(record.answer), expected)
                return
        if min(size) > THOUSAND:
            self.large_image_boxes += len(boxes)
            self.largest_coordinate = max(self.largest_coordinate, *(max(box) for box in boxes))

    def warnings(self, name: str) -> list[Problem]:
        """Return warnings about the boxes of the whole file."""
        if self.large_image_boxes < MIN_BOXES or self.largest_coordinate > THOUSAND:
            return []
        boxes = f"{self.large_image_boxes:,} boxes on images of over 1000 pixels"
        found = f"none of {boxes} exceeds {self.largest_coordinate:g}"
        expected = 'pixels of the original image; for coordinates from 0 to 1000 add "box_space": "thousand"'
        return [Problem(name, "answer", found, expected, is_warning=True)]


def true_boxes(record: Record) -> list[Box]:
    """Return the gold boxes of a record that are in the space of its column `box_space`."""
    if record.answer is None:
        return []
    if record.task in DETECTION_TASKS:
        return [
            item.box for item in parse_target_detections(ground_truth_text(record.answer)) or [] if not item.is_thousand
        ]
    return boxes_in(ground_truth_text(record.answer)) if record.task in BOX_TASKS else []


def validate_box_position(box: Box, size: tuple[int, int]) -> str | None:
    """Return what is expected if a box cannot be in pixels of an image of this size; else None."""
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
        return None  # a problem of the image, which is reported elsewhere


CHUNK_ROWS = 256  # rows whose images are validated together
CHUNK_BYTES = 16 * 2**20  # bytes of embedded images after which a chunk ends early, to bound memory


def check_source(
    source: str | Path | Sequence[str] | Dataset,
    *,
    image_folders: str | Sequence[str] | None = None,
    reward_method: str | Sequence[str] | None = None,
    config: ReaderConfig | None = None,
    decode: bool = False,
    mixture: str | Sequence[str | float] | None = None,
    note: Callable[[Record], None] | None = None,
) -> list[Problem]:
    """Return all problems of a data set: of options, files, rows and images, in this order.

    Arguments are those of `open_sources` and `load_dataset`; with `decode` every image is decoded, otherwise only
    header and end are read. `note` is called with every valid record.
    """
    result = open_sources(source, image_folders=image_folders, reward_method=reward_method, config=config)
    _, problems = file_shares(mixture, source, result)
    problems += result.problems
    return problems + [problem for part in result.sources for problem in check_rows(part, decode=decode, note=note)]


def check_rows(source: Source, *, decode: bool = False, note: Callable[[Record], None] | None = None) -> list[Problem]:
    """Return all problems of the rows of one source and their images, in row order."""
    problems: list[Problem] = []
    images, positions = _ImageCheck(decode), BoxPositionCheck()
    parsed_rows = (parse_raw_row(raw, source.where(n), n, source.config) for n, raw in enumerate(source.rows()))
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for chunk in _chunks(parsed_rows):
            images.validate_new(chunk, pool)
            for parsed in chunk:
                if note is not None and parsed.record is not None:
                    note(parsed.record)
                problems += parsed.problems
                problems += images.problems(parsed)
                problems += positions.problems(parsed)
                problems += _video_problems(parsed, decode)
    return problems + positions.warnings(source.name)


def check_row(parsed: ParsedRow) -> list[Problem]:
    """Return the problems of one row, its images and its videos."""
    images = _ImageCheck(decode=False)
    images.errors = {hash(ref.key): error for ref in _files(parsed) if (error := validate_image(ref))}
    positions = BoxPositionCheck().problems(parsed)
    return [*parsed.problems, *images.problems(parsed), *positions, *_video_problems(parsed, decode=False)]


def _video_problems(parsed: ParsedRow, decode: bool) -> list[Problem]:
    """Return the problems of the videos of a row; frames are validated as images."""
    errors = [(ref, validate_video(ref, decode=decode)) for ref in parsed.videos]
    return [
        Problem(ref.where, "video", f"{media_name(ref.source)}: {error}", "a video that can be decoded")
        for ref, error in errors
        if error
    ]


def _chunks(parsed_rows: Iterator[ParsedRow]) -> Iterator[list[ParsedRow]]:
    """Yield a few rows at a time."""
    chunk: list[ParsedRow] = []
    size = 0
    for parsed in parsed_rows:
        chunk.append(parsed)
        size += sum(len(ref.source) for ref in _files(parsed) if isinstance(ref.source, bytes))
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@dataclass
class _ImageCheck:
    """Validates image files. A file used by several rows is read once and reported for each row."""

    decode: bool
    valid: set[int] = field(default_factory=set)  # hashes of keys: a million paths would take much more memory
    errors: dict[int, str] = field(default_factory=dict)

    def validate_new(self, parsed_rows: list[ParsedRow], pool: ThreadPoolExecutor) -> None:
        """Validate all images that have not been validated yet."""
        new = {hash(ref.key): ref for parsed in parsed_rows for ref in _files(parsed)}
        new = {key: ref for key, ref in new.items() if key not in self.valid and key not in self.errors}
        errors = pool.map(lambda ref: validate_image(ref, decode=self.decode), new.values())
        for key, error in zip(new, errors, strict=True):
            if error is None:
                self.valid.add(key)
            else:
                self.errors[key] = error

    def problems(self, parsed: ParsedRow) -> Iterator[Problem]:
        """Yield a problem for each invalid image of a row."""
        for ref in _files(parsed):
            if error := self.errors.get(hash(ref.key)):
                yield Problem(ref.where, "image", f"{media_name(ref.source)}: {error}", "an image that can be decoded")


def _files(parsed: ParsedRow) -> list[ImageRef]:
    """Return the images and video frames of a row that are not decoded yet."""
    frames = [frame for video in parsed.videos if isinstance(video.source, tuple) for frame in video.source]
    return [ref for ref in (*parsed.images, *frames) if not isinstance(ref.source, Image.Image)]
