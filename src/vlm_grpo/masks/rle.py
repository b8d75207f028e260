"""COCO's RLE masks: `{"size": [height, width], "counts": text or list}`, alternating runs of outside and inside.

The text encodes each run in characters of six bits: five bits of the number and a continuation bit. From the fourth run
on, the difference to the run before the previous one is stored (cocoapi, common/maskApi.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlm_grpo.records import JsonObject

MAX_CHARACTERS = 7  # per number: 35 bits
MAX_SIDE = 100_000  # pixels


class RLEMask(NamedTuple):
    """A mask as run boundaries (see raster.py): its height and width in pixels, and the boundaries."""

    height: int
    width: int
    boundaries: np.ndarray

    @property
    def area(self) -> int:
        """Return the number of pixels inside."""
        return int((self.boundaries[1::2] - self.boundaries[::2]).sum())


def read_rle(value: object) -> RLEMask:
    """Return the mask of an RLE object.

    Raises:
        ValueError: the value is not an RLE object, or its runs do not sum to the mask's size.
    """
    if not isinstance(value, Mapping) or not {"size", "counts"} <= set(value):
        raise ValueError('must be {"size": [height, width], "counts": ...}')
    size, counts = value["size"], value["counts"]
    is_size = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)
    if not is_size or not all(0 < side <= MAX_SIDE for side in size):
        raise ValueError(f"'size' must be [height, width], each from 1 to {MAX_SIDE} pixels")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    if isinstance(counts, list | tuple):
        if not all(type(run) is int and 0 <= run <= MAX_SIDE**2 for run in counts):
            raise ValueError("'counts' must be non-negative integers")
        counts = tuple(counts)
    elif not isinstance(counts, str):
        raise ValueError("'counts' must be text or a list of run lengths")
    return _read(size[0], size[1], counts)


def write_rle(mask: np.ndarray) -> JsonObject:
    """Return the RLE object of a mask, (H, W), with counts as text."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


@lru_cache(maxsize=4096)
def _read(height: int, width: int, counts: str | tuple[int, ...]) -> RLEMask:
    runs = _runs_of_text(counts) if isinstance(counts, str) else np.array(counts, dtype=np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the runs in 'counts' must sum to {height * width} pixels, got {runs.sum()}")
    boundaries = np.cumsum(runs)[: len(runs) // 2 * 2]  # a final run outside needs no boundary
    boundaries.flags.writeable = False
    return RLEMask(height, width, boundaries)


def _runs_of_text(counts: str) -> np.ndarray:
    """Return run lengths, int64 (runs,)."""
    codes = np.frombuffer(counts.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - 48
    is_last = codes < 32
    if not counts or ((codes < 0) | (codes > 63)).any() or not is_last[-1]:
        raise ValueError("'counts' must be text in the encoding of pycocotools")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_CHARACTERS:
        raise ValueError("'counts' contains a run that is too long")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)  # the last character carries the sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
