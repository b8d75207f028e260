"""References to images in all supported formats, and the only place where images are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

from PIL import Image

from vlm_grpo.data.errors import MediaError
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.redact import redact_text
from vlm_grpo.web import Limits, fetch_url

URL_STARTS = ("http://", "https://")
IMAGE_LIMITS = Limits(size=64 * 2**20, seconds=60.0)
BASE64_SHORTEST = 48  # characters; no image file is shorter
PATH_LONGEST = 4096  # characters; longer text must be base64
# Prefixes of PNG, JPEG, GIF, WebP and TIFF files in base64. `/9j/` alone could be a path; in JPEG a marker follows.
BASE64_START = re.compile(r"iVBORw0KGgo|/9j/[w-z0-9+/]|R0lGOD|UklGR|SUkqA|TU0AK")
# Exceptions of decoders for corrupt files, in addition to PIL's own (OSError and SyntaxError).
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    HTTPException,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT_TRANSPOSES = {  # the inverse of each orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED_SIDES = (5, 6, 7, 8)  # orientations that swap width and height
MAX_ASPECT_RATIO = 200  # the limit of Qwen's image processors
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def image_ref(value: object, where: str = "") -> ImageRef:
    """Return a reference to an image: a path, URL, base64 text, bytes, `{bytes, path}` or PIL image. Decodes nothing.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, ImageRef):
        return value
    if isinstance(value, Image.Image | bytes) and value != b"":
        return ImageRef(value, where)
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return image_ref(_payload(value["bytes"]) if value.get("bytes") else value["path"], where)
    if isinstance(value, Path):
        return ImageRef(str(value), where)
    if isinstance(value, str) and value:
        encoded = base64_bytes(value)
        return ImageRef(value if encoded is None else encoded, where)
    raise ValueError(f"{where}: an image must be a path, URL, base64 text, bytes or a PIL image, got {value!r:.80}")


def _payload(value: str | bytes) -> bytes:
    """Return the value of `bytes`, which is base64 text in JSON."""
    return base64.b64decode(value) if isinstance(value, str) else value


def base64_bytes(text: str) -> bytes | None:
    """Return the bytes of a data URL or of base64 text that is an image file; None for anything else, such as a path.

    Raises:
        ValueError: a data URL is not base64.
    """
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"a data URL must be base64, got {text[:40]!r}")
        return base64.b64decode("".join(body.split()), validate=True)
    if len(text) < BASE64_SHORTEST or not (BASE64_START.match(text) or len(text) > PATH_LONGEST):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def open_image(ref: ImageRef) -> Image.Image:
    """Decode an image: upright (EXIF applied), RGB, the first frame of an animation.

    Small images are not enlarged here but by the model's processor. An aspect ratio over 200 is an error for every
    family: padding would shift relative box coordinates, shrinking would make the content invisible, and it is almost
    always a wrong crop.

    Raises:
        MediaError: the image is missing, cannot be decoded or is too long; the message names `ref.where`.
    """
    try:
        if isinstance(ref.source, Image.Image):
            return _upright(ref.source)
        with Image.open(media_source(ref)) as image:
            return _upright(image)
    except DECODE_ERRORS as error:
        raise MediaError(
            f"{ref.where or 'image'}: cannot decode {media_name(ref.source)}: {decode_error(error)}"
        ) from error


def image_size(ref: ImageRef) -> tuple[int, int]:
    """Return width and height in pixels of the upright image, reading only the file's header.

    Raises:
        MediaError: the image is missing or has no readable header; the message names `ref.where`.
    """
    try:
        if isinstance(ref.source, Image.Image):
            return _upright_size(ref.source)
        with Image.open(media_source(ref)) as image:
            return _upright_size(image)
    except DECODE_ERRORS as error:
        raise MediaError(
            f"{ref.where or 'image'}: cannot read {media_name(ref.source)}: {decode_error(error)}"
        ) from error


def check_sides(image: Image.Image) -> None:
    """Check that every model family can process an image of this shape.

    Raises:
        ValueError: the longer side is more than 200 times the shorter one.
    """
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels, over {MAX_ASPECT_RATIO}:1 (crop it, or pad it)")


def _upright(image: Image.Image) -> Image.Image:
    check_sides(image)
    image.load()  # before reading the orientation: PIL already applies it to TIFF files here
    turn = UPRIGHT_TRANSPOSES.get(_orientation(image))
    return to_rgb(image if turn is None else image.transpose(turn))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    is_upright = (
        image.format == "TIFF" or _orientation(image) not in SWAPPED_SIDES
    )  # PIL swaps them when it opens a TIFF
    return (width, height) if is_upright else (height, width)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if EXIF data are missing or corrupt, as in image viewers."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def media_source(ref: ImageRef | VideoRef, limits: Limits = IMAGE_LIMITS) -> str | io.BytesIO:
    """Return a source for PIL or PyAV: a path, or a file in memory for bytes and URLs.

    Raises:
        OSError: the path is not a regular file, or the URL has no content within the limits.
    """
    source = ref.source
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str):
        raise TypeError(f"expected a path, URL or bytes, got {type(source).__name__}")
    if source.startswith(URL_STARTS):
        return io.BytesIO(fetch_url(source, replace(limits, private=ref.is_private_allowed)))
    check_regular(source)
    return source


def media_name(source: object) -> str:
    """Return the name of an image or video for error messages."""
    if not isinstance(source, str):
        return "an embedded image"
    if source.startswith(URL_STARTS):
        source = redact_text(source)
    return source if len(source) <= PATH_LONGEST else f"{source[:40]}... ({len(source):,} characters)"


def decode_error(error: BaseException) -> str:
    """Return the decoder's error message without object addresses."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    message = getattr(error, "strerror", None) or error  # attribute of OSError and of PyAV's exceptions
    text = str(message).split("<_io.", 1)[0].strip()
    return text or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparency over white, 16-bit values scaled instead of clipped."""
    if image.mode in SIXTEEN_BIT or image.mode in ("I", "F"):
        return _to_eight_bits(image).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        profile = ImageCms.createProfile
        converted = ImageCms.profileToProfile(image, profile("LAB"), profile("sRGB"), outputMode="RGB")
        return converted or image  # None only if it converts in place
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale gray levels to 0 to 255. Modes I and F have no fixed range, so the largest value is used."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    largest = 65535 if image.mode in SIXTEEN_BIT else float(values.max(initial=0))
    full = 65535 if largest > 255 else 1 if image.mode == "F" and largest <= 1 else 255
    return Image.fromarray(np.clip(np.rint(values * (255 / full)), 0, 255).astype(np.uint8))
