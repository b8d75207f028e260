"""Whether an image file can be decoded, as cheaply as its format allows."""

from __future__ import annotations

import os

from PIL import Image

from vlm_grpo.data.images import DECODE_ERRORS, URL_STARTS, check_sides, open_image, opened, reason
from vlm_grpo.records import ImageRef

TAIL = 64  # bytes at the end of a file in which its end marker must stand
END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}


def image_fault(ref: ImageRef, *, decode: bool = False) -> str | None:
    """What is wrong with an image; None when it is whole and `open_image` will take it.

    By default the header and the end of the file are read, and PNG's checksums; formats whose end does not show
    whether they are complete are decoded. With `decode` every image is decoded. URLs are fetched only with `decode`.
    """
    if isinstance(ref.source, Image.Image):
        return None
    is_url = isinstance(ref.source, str) and ref.source.startswith(URL_STARTS)
    if is_url and not decode:
        return None
    try:
        if is_url or not _looks_whole(ref) or decode:
            return _decode_fault(ref)
    except DECODE_ERRORS as error:
        return reason(error)
    return None


def _decode_fault(ref: ImageRef) -> str | None:
    try:
        open_image(ref)
    except ValueError as error:
        return reason(error.__cause__ or error)
    return None


def _looks_whole(ref: ImageRef) -> bool:
    """Whether header and end fit together; False means that only decoding can tell."""
    file = opened(ref)
    file = open(file, "rb") if isinstance(file, str) else file  # noqa: SIM115
    with file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise OSError("the file is empty")
        file.seek(max(0, size - TAIL))
        tail = file.read()
        file.seek(0)
        with Image.open(file) as image:  # refuses decompression bombs by the size in the header
            check_sides(image)
            kind = image.format
            if kind == "PNG":
                image.verify()
    if kind == "WEBP":
        return True  # opening one reads and checks the whole container
    return END_MARKS.get(kind, tail + b"?") in tail
