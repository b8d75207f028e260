from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.data.files import png
from vlm_grpo.io import (
    content_name,
    image_suffix,
    json_line,
    refuse_existing,
    whole_file,
    whole_files,
    write_once,
    write_whole,
)


def test_a_file_takes_its_name_at_the_end(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_files(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_files([tmp_path / "a", tmp_path / "b"]) as (one, _):
        one.write(b"new")
        _ = 1 / 0
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_exists_is_refused_before_anything_is_done(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    refuse_existing([tmp_path / "b"], overwrite=False)
    refuse_existing([tmp_path / "a"], overwrite=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        refuse_existing([tmp_path / "b", tmp_path / "a"], overwrite=False)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        refuse_existing([tmp_path], overwrite=True)
    with pytest.raises(FileNotFoundError, match="create it first"):
        refuse_existing([tmp_path / "none" / "a"], overwrite=True)


def test_an_image_is_written_once(tmp_path: Path):
    name = content_name(png())
    assert name == hashlib.sha256(png()).hexdigest()[:32] + ".png"
    write_once(tmp_path / name, png())
    write_once(tmp_path / name, png())
    with pytest.raises(FileExistsError, match="exists with other content"):
        write_once(tmp_path / name, png("blue"))
    assert (tmp_path / name).read_bytes() == png()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_suffixes_are_those_of_the_formats_that_pillow_writes(tmp_path: Path, kind: str):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "image", kind)
    suffix = image_suffix((tmp_path / "image").read_bytes())
    assert Image.registered_extensions()[suffix] == kind
    with pytest.raises(ValueError, match="expected a PNG"):
        image_suffix(b"text")


def test_lines_are_json_and_nothing_else(tmp_path: Path):
    assert json_line({"a": "é"}) == '{"a": "é"}\n'.encode()
    with pytest.raises(ValueError, match="JSON"):
        json_line(float("nan"))
    with pytest.raises(TypeError, match="bytes"):
        json_line(b"")
    write_whole(tmp_path / "a", "é")
    assert (tmp_path / "a").read_bytes() == "é".encode()
