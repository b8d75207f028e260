"""Images as the world has them: each is decoded right, or named with file and line before training."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.files import png, turns, write_jsonl
from tests.data.test_images import noise, pixel, saved
from vlm_grpo.data import DataError, check_source, load_dataset
from vlm_grpo.data.images import image_size, open_image
from vlm_grpo.data.validation import validate_image
from vlm_grpo.records import ImageRef

ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def raw_png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG file of lines that start with their filter byte, in forms that PIL does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bomb() -> bytes:
    """20,000 x 10,000 pixels that only its header claims."""
    return raw_png(20_000, 10_000, 8, 2, b"\0")


def corner(turn: int) -> Image.Image:
    """32 x 16 pixels of white, the upper left quarter red, as a camera held in one of the eight ways stores them."""
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 8))
    # What was stored is turned once more on display (EXIF 2.32, 4.6.4): so store the inverse.
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the values of Image.Transpose
    return image if turn == 1 else image.transpose(Image.Transpose(stored[turn]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_stands_upright(turn: int, kind: str):
    exif = Image.Exif()
    exif[0x0112] = turn
    ref = ImageRef(saved(corner(turn), kind, exif=exif, **({"quality": 100} if kind != "TIFF" else {})))
    image = open_image(ref)
    assert image.size == image_size(ref) == (32, 16)
    with Image.open(io.BytesIO(ref.source)) as stored:
        assert image.tobytes() == ImageOps.exif_transpose(stored).convert("RGB").tobytes()
    (red, green, _), white = image.getpixel((4, 4)), image.getpixel((28, 12))
    assert red > 200 and green < 60 and min(white) > 240
    assert min(image.getpixel((28, 4))) > 240 and min(image.getpixel((4, 12))) > 240


@pytest.mark.parametrize("exif", [b"Exif\0\0no tiff header", b"Exif\0\0", ROTATED.tobytes()[:12]])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_leave_the_image_as_it_is(exif: bytes, kind: str):
    ref = ImageRef(saved(Image.new("RGB", (8, 4), "red"), kind, exif=exif))
    assert validate_image(ref) is None
    assert open_image(ref).size == image_size(ref) == (8, 4)


def test_sixteen_bit_colors_and_grey_with_alpha_are_scaled():
    color = struct.pack(">HHH", 200 * 257, 100 * 257, 0)
    assert pixel(raw_png(1, 1, 16, 2, b"\0" + color)) == (200, 100, 0)
    see_through = color + struct.pack(">H", 0)
    assert pixel(raw_png(1, 1, 16, 6, b"\0" + see_through)) == (255, 255, 255)
    assert pixel(raw_png(1, 1, 16, 4, b"\0" + struct.pack(">HH", 100 * 257, 65535))) == (100, 100, 100)


def test_one_bit_and_grey_images_become_rgb():
    assert pixel(saved(Image.new("1", (2, 2), 1), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("L", (2, 2), 7), "PNG")) == (7, 7, 7)


@pytest.mark.parametrize(("name", "kind"), [("a.png", "JPEG"), ("a.jpg", "PNG"), ("a.gif", "WEBP"), ("a", "BMP")])
def test_the_content_decides_and_not_the_extension(tmp_path: Path, name: str, kind: str):
    (tmp_path / name).write_bytes(saved(Image.new("RGB", (8, 8), "blue"), kind))
    data = load_dataset(
        write_jsonl(tmp_path / "a.jsonl", [{"image": name, "conversations": turns("<image>q", "a")}]),
        image_folders=str(tmp_path),
    )
    red, green, blue = open_image(data[0]["images"][0]).getpixel((0, 0))
    assert red < 10 and green < 10 and blue > 240


BAD = {
    "zero.png": (b"", "the file is empty"),
    "cut.jpg": (saved(noise(), "JPEG")[:1500], "truncated"),
    "page.jpg": (b"<html>not found</html>", "cannot identify image file"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "cannot identify image file"),
    "bomb.png": (bomb(), "200000000 pixels"),
    "line.png": (png(size=(20_000, 20)), "20,000 x 20 pixels, over 200:1"),
    "column.gif": (saved(Image.new("L", (20, 4001)), "GIF"), "20 x 4,001 pixels, over 200:1"),
    "folder": (None, "a folder, not a regular file"),
}


def rows_of(folder: Path, names: list[str]) -> str:
    (folder / "folder").mkdir(exist_ok=True)
    return write_jsonl(folder / "a.jsonl", [{"image": n, "conversations": turns("<image>q", "a")} for n in names])


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_with_file_and_line(tmp_path: Path, name: str, decode: bool):
    content, found = BAD[name]
    (tmp_path / "good.png").write_bytes(png())
    path = rows_of(tmp_path, ["good.png", name])
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (problem,) = check_source(path, image_folders=str(tmp_path), decode=decode)
    assert (problem.where, problem.field, problem.is_warning) == (f"{path}:2", "image", False)
    assert problem.found.startswith(f"{tmp_path}/{name}: ")
    assert found in problem.found
    with pytest.raises(DataError, match=r"a\.jsonl:2 "):
        load_dataset(path, image_folders=str(tmp_path))


@pytest.mark.parametrize("name", ["zero.png", "cut.jpg", "page.jpg", "bomb.png", "line.png", "folder"])
def test_without_the_check_they_are_named_when_they_are_decoded(tmp_path: Path, name: str):
    path = rows_of(tmp_path, [name])
    if BAD[name][0] is not None:
        (tmp_path / name).write_bytes(BAD[name][0])
    (row,) = load_dataset(path, image_folders=str(tmp_path), check=False)
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: cannot decode .*{name}"):
        open_image(row["images"][0])


def test_a_bomb_is_refused_before_it_takes_memory():
    import tracemalloc

    tracemalloc.start()
    assert "exceeds limit" in validate_image(ImageRef(bomb()), decode=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200), (4000, 20)])
def test_tiny_and_long_images_up_to_200_to_1_are_whole(size: tuple[int, int]):
    ref = ImageRef(png(size=size))
    assert validate_image(ref) is None
    assert open_image(ref).size == size


def test_an_image_in_memory_that_is_too_long_names_its_row():
    with pytest.raises(ValueError, match=r"f:7: cannot decode an embedded image: 2 x 401 pixels, over 200:1"):
        open_image(ImageRef(Image.new("RGB", (2, 401)), "f:7"))


@pytest.fixture(scope="module")
def encoder() -> Any:
    from vlm_grpo.rollouts.encoder import PromptEncoder
    from vlm_grpo.tiny import build_tiny_qwen

    return PromptEncoder(build_tiny_qwen()[1], {})


def encoded(encoder: Any, *images: Image.Image) -> dict[str, Any]:
    """The visual tensors of one prompt with these images."""
    prompt = [{"role": "user", "content": [*({"type": "image"} for _ in images), {"type": "text", "text": "q"}]}]
    (sample,) = encoder.encode([{"prompt": prompt, "images": list(images)}])
    grids = sample.visual["image_grid_thw"]
    assert len(sample.visual["pixel_values"]) == int(grids.prod(dim=1).sum())
    pad = encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert sample.input_ids.count(pad) == int(grids.prod(dim=1).sum()) // 4  # four patches make a token
    return sample.visual


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (1, 3), (3, 1), (27, 28), (2, 400)])
def test_tiny_images_are_enlarged_by_the_processor_and_keep_their_color(encoder: Any, size: tuple[int, int]):
    visual = encoded(encoder, Image.new("RGB", size, (255, 0, 51)))
    assert min(visual["image_grid_thw"][0].tolist()[1:]) >= 2
    # A patch is (color, time, height, width); sides of 1 or 3 must not be taken for the color.
    colors = visual["pixel_values"].reshape(-1, 3, 2 * 14 * 14).transpose(0, 1).reshape(3, -1)
    processor = encoder.processor.image_processor
    for values, level, mean, deviation in zip(
        colors, (1, 0, 0.2), processor.image_mean, processor.image_std, strict=True
    ):
        np.testing.assert_allclose(values, (level - mean) / deviation, atol=0.02)


@pytest.mark.parametrize("tiny", [(1, 1), (3, 200)])
def test_tiny_images_are_enlarged_alone(encoder: Any, tiny: tuple[int, int]):
    small, large = Image.new("RGB", tiny, "blue"), noise().resize((90, 60))
    alone, small_alone = encoded(encoder, large), encoded(encoder, small)
    both = encoded(encoder, small, large)
    assert both["image_grid_thw"].tolist() == [*small_alone["image_grid_thw"].tolist(), [1, 4, 6]]  # 56 x 84
    patches = len(small_alone["pixel_values"])
    assert both["pixel_values"][:patches].equal(small_alone["pixel_values"])
    assert both["pixel_values"][patches:].equal(alone["pixel_values"])
