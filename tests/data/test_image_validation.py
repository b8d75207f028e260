from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import noise, saved
from vlm_grpo.data import images, validation
from vlm_grpo.data.validation import validate_image
from vlm_grpo.records import ImageRef
from vlm_grpo.web import Limits

KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_file_has_no_fault(kind: str, decode: bool, tmp_path: Path):
    (tmp_path / "a").write_bytes(saved(noise(), kind))
    assert validate_image(ImageRef(str(tmp_path / "a")), decode=decode) is None
    assert validate_image(ImageRef(saved(noise(), kind)), decode=decode) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_a_cut_file_has_a_fault(kind: str, keep: float):
    content = saved(noise(), kind)
    assert validate_image(ImageRef(content[: int(len(content) * keep)]))


def test_a_flipped_bit_in_a_png_has_a_fault():
    content = bytearray(saved(noise(), "PNG"))
    content[len(content) // 2] ^= 1
    assert validate_image(ImageRef(bytes(content)))


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "the file is empty"), (b"text", "cannot identify image file"), (None, "no such file")]
)
def test_files_that_are_no_images_have_a_fault(content: bytes | None, fault: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    found = validate_image(ImageRef(str(tmp_path / "a.png")))
    assert found is not None and found.startswith(fault)


def test_jpeg_with_bytes_behind_its_end_is_whole():
    assert validate_image(ImageRef(saved(noise(), "JPEG") + b"x" * 1000)) is None


def test_png_and_jpeg_are_not_decoded_unless_asked(monkeypatch: pytest.MonkeyPatch):
    decoded = []
    monkeypatch.setattr(validation, "open_image", lambda ref: decoded.append(ref) or images.open_image(ref))
    for kind in ("PNG", "JPEG", "WEBP"):
        validate_image(ImageRef(saved(noise(), kind)))
    assert decoded == []
    validate_image(ImageRef(saved(noise(), "PNG")), decode=True)
    assert len(decoded) == 1


def test_urls_are_fetched_only_to_decode(monkeypatch: pytest.MonkeyPatch):
    def refuse(url: str, limits: Limits) -> None:
        raise OSError(f"asked for {url}")

    monkeypatch.setattr("vlm_grpo.data.images.fetch_url", refuse)
    ref = ImageRef("https://host/a.png", "f:1")
    assert validate_image(ref) is None
    assert validate_image(ref, decode=True) == "asked for https://host/a.png"
    assert validate_image(ImageRef(Image.fromarray(np.zeros((2, 2), np.uint8)))) is None
