"""Every problem of a data set, before anything expensive: rows, then each image file once. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlm_grpo.data.forms import Form, Reading
from vlm_grpo.data.images import name_of
from vlm_grpo.data.mixture import file_shares
from vlm_grpo.data.placing import BoxPlaces
from vlm_grpo.data.problems import Problem
from vlm_grpo.data.rows import as_reading
from vlm_grpo.data.sources import Source, open_sources
from vlm_grpo.data.verify import image_fault
from vlm_grpo.data.videos import video_fault
from vlm_grpo.records import ImageRef, Record

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK = 256  # rows whose images are looked at together
HELD = 16 * 2**20  # bytes of embedded images after which a chunk ends early, so that memory stays flat


def check_source(
    source: str | Path | Sequence[str] | Dataset,
    *,
    image_folders: str | Sequence[str] | None = None,
    reward_method: str | Sequence[str] | None = None,
    form: Form | None = None,
    decode: bool = False,
    mixture: str | Sequence[str | float] | None = None,
    note: Callable[[Record], None] | None = None,
) -> list[Problem]:
    """Every problem of a data set: of the options, the files, the rows and the images, in this order.

    Arguments as in `open_sources` and `load_dataset`; with `decode` every image is decoded, otherwise header and end
    are read. `note` is told every record that can be read.
    """
    opened = open_sources(source, image_folders=image_folders, reward_method=reward_method, form=form)
    _, problems = file_shares(mixture, source, opened)
    problems += opened.problems
    return problems + [problem for part in opened.sources for problem in check_rows(part, decode=decode, note=note)]


def check_rows(source: Source, *, decode: bool = False, note: Callable[[Record], None] | None = None) -> list[Problem]:
    """Every problem of the rows of one source and of their images, in the order of the rows."""
    problems: list[Problem] = []
    images, places = _ImageCheck(decode), BoxPlaces()
    readings = (as_reading(raw, source.where(n), n, source.form) for n, raw in enumerate(source.rows()))
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for chunk in _chunks(readings):
            images.look(chunk, pool)
            for reading in chunk:
                if note is not None and reading.record is not None:
                    note(reading.record)
                problems += reading.problems
                problems += images.problems(reading)
                problems += places.problems(reading)
                problems += _video_problems(reading, decode)
    return problems + places.warnings(source.name)


def check_reading(reading: Reading) -> list[Problem]:
    """What is wrong with one row, its images and its videos, without remembering it for another row."""
    images = _ImageCheck(decode=False)
    images.faults = {hash(ref.key): fault for ref in _files(reading) if (fault := image_fault(ref))}
    places = BoxPlaces().problems(reading)
    return [*reading.problems, *images.problems(reading), *places, *_video_problems(reading, decode=False)]


def _video_problems(reading: Reading, decode: bool) -> list[Problem]:
    """What is wrong with the videos of a row; their frames are looked at as images."""
    faults = [(ref, video_fault(ref, decode=decode)) for ref in reading.videos]
    return [
        Problem(ref.where, "video", f"{name_of(ref.source)}: {fault}", "a video that can be decoded")
        for ref, fault in faults
        if fault
    ]


def _chunks(readings: Iterator[Reading]) -> Iterator[list[Reading]]:
    """A few rows at a time."""
    chunk: list[Reading] = []
    held = 0
    for reading in readings:
        chunk.append(reading)
        held += sum(len(ref.source) for ref in _files(reading) if isinstance(ref.source, bytes))
        if len(chunk) == CHUNK or held >= HELD:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


@dataclass
class _ImageCheck:
    """Faults of image files. A file that several rows use is read once and reported for each of them."""

    decode: bool
    whole: set[int] = field(default_factory=set)  # hashes of keys: a million paths would take much more memory
    faults: dict[int, str] = field(default_factory=dict)

    def look(self, readings: list[Reading], pool: ThreadPoolExecutor) -> None:
        """Find the faults of all images that are new."""
        new = {hash(ref.key): ref for reading in readings for ref in _files(reading)}
        new = {key: ref for key, ref in new.items() if key not in self.whole and key not in self.faults}
        found = pool.map(lambda ref: image_fault(ref, decode=self.decode), new.values())
        for key, fault in zip(new, found, strict=True):
            if fault is None:
                self.whole.add(key)
            else:
                self.faults[key] = fault

    def problems(self, reading: Reading) -> Iterator[Problem]:
        """A problem for each faulty image of a row."""
        for ref in _files(reading):
            if fault := self.faults.get(hash(ref.key)):
                yield Problem(ref.where, "image", f"{name_of(ref.source)}: {fault}", "an image that can be decoded")


def _files(reading: Reading) -> list[ImageRef]:
    """The images and video frames of a row that are not decoded yet."""
    frames = [frame for video in reading.videos if isinstance(video.source, tuple) for frame in video.source]
    return [ref for ref in (*reading.images, *frames) if not isinstance(ref.source, Image.Image)]
