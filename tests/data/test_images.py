from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.data.files import png
from vlm_grpo.data.images import image_ref, image_size, open_image
from vlm_grpo.records import ImageRef


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(content: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    image = open_image(ImageRef(content))
    assert image.mode == "RGB"
    return image.getpixel(at)


@pytest.mark.parametrize(
    "value",
    [
        png(),
        {"bytes": png(), "path": "elsewhere.png"},
        base64.b64encode(png()).decode(),
        base64.encodebytes(png()).decode(),
        "data:image/png;base64," + base64.b64encode(png()).decode(),
        {"bytes": base64.b64encode(png()).decode()},
    ],
    ids=["bytes", "struct", "base64", "base64 in lines", "data url", "base64 struct"],
)
def test_every_embedded_form_becomes_the_undecoded_bytes(value: object):
    assert image_ref(value, "f:1") == ImageRef(png(), "f:1")


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("a/b.png", "a/b.png"),
        (Path("a/b.png"), "a/b.png"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        ("https://host/a.png", "https://host/a.png"),
        ("iVBORw0KGgo.png" * 10, "iVBORw0KGgo.png" * 10),
        ("/9j/" + "folder/" * 20 + "name", "/9j/" + "folder/" * 20 + "name"),
        ("images/" * 50, "images/" * 50),
    ],
)
def test_paths_and_urls_stay_text(value: object, source: str):
    assert image_ref(value).source == source


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_base64_of_every_format_is_recognised(kind: str):
    content = saved(noise(), kind)
    assert image_ref(base64.b64encode(content).decode()).source == content


def test_long_text_is_base64_of_any_format_or_is_named_shortly():
    content = saved(noise(), "BMP")
    text = base64.b64encode(content).decode()
    assert image_ref(text).source == content
    ref = image_ref("!" + text, "f:2")
    expected = r"^f:2: cannot decode !Qk[^ ]{37}\.\.\. \(6,473 characters\): File name too long$"
    with pytest.raises(ValueError, match=expected):
        open_image(ref)


def test_pil_image_and_reference_stay_themselves():
    image = Image.new("RGB", (2, 2))
    assert image_ref(image).source is image
    ref = ImageRef("a.png", "f:1")
    assert image_ref(ref, "other") is ref


@pytest.mark.parametrize("value", [3, None, "", b"", [], {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_anything_else_is_refused(value: object):
    with pytest.raises(ValueError, match="f:1: an image must be"):
        image_ref(value, "f:1")


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: upright is 4 x 8
    assert open_image(ImageRef(saved(image, "JPEG", exif=exif))).size == (4, 8)
    rotated = Image.open(io.BytesIO(saved(image, "JPEG", exif=exif)))
    assert open_image(ImageRef(rotated)).size == (4, 8)


def test_transparency_lies_over_white():
    assert pixel(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51)), "PNG")) == (204, 204, 204)
    assert pixel(saved(Image.new("LA", (2, 2), (0, 0)), "PNG")) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert pixel(saved(palette, "PNG")) == (0, 0, 255)
    assert pixel(saved(palette, "PNG", transparency=1)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (200, 1), (257 * 100, 100), (65535, 255)])
def test_sixteen_bit_grey_is_scaled(value: int, grey: int):
    content = saved(Image.fromarray(np.full((2, 2), value, dtype=np.uint16)), "PNG")
    assert pixel(content) == (grey, grey, grey)


def test_float_and_integer_images_are_scaled_by_their_range():
    assert pixel(saved(Image.fromarray(np.array([[1.0, 0.2]], dtype=np.float32)), "TIFF"), (1, 0)) == (51, 51, 51)
    assert pixel(saved(Image.fromarray(np.array([[200, 0]], dtype=np.int32)), "TIFF")) == (200, 200, 200)
    assert pixel(saved(Image.fromarray(np.array([[65535, 0]], dtype=np.int32)), "TIFF")) == (255, 255, 255)


def test_cmyk_and_lab_become_rgb():
    red = pixel(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 240 and red[1] < 20 and red[2] < 20
    white = pixel(saved(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"))
    assert min(white) > 240


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = pixel(content)
        assert red > 240 and green < 20 and blue < 20


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_an_error_that_names_the_line(kind: str):
    content = saved(noise(), kind)
    with pytest.raises(ValueError, match=r"f:3: cannot decode an embedded image: .+"):
        open_image(ImageRef(content[: len(content) // 2], "f:3"))


def test_a_missing_file_is_an_error_that_names_the_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"f:3: cannot decode .*a\.png: no such file"):
        open_image(ImageRef(str(tmp_path / "a.png"), "f:3"))
    with pytest.raises(ValueError, match=r"f:3: cannot decode .*null"):
        open_image(ImageRef("a\0.png", "f:3"))
    with pytest.raises(ValueError, match=r"f:3: cannot decode an embedded image: cannot identify image file$"):
        open_image(ImageRef(b"no image", "f:3"))


def test_decoding_leaves_the_given_image_as_it_was():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    ImageDraw.Draw(image).point((0, 0), (255, 0, 0, 255))
    assert open_image(ImageRef(image)).getpixel((0, 0)) == (255, 0, 0)
    assert image.mode == "RGBA"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_is_that_of_the_decoded_image(orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    ref = image_ref(str(tmp_path / "a.jpg"), "a:1")
    assert image_size(ref) == open_image(ref).size == ((20, 30) if orientation > 4 else (30, 20))


def test_image_size_names_the_line_of_a_missing_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a:1: cannot read .*no such file"):
        image_size(image_ref(str(tmp_path / "none.png"), "a:1"))
