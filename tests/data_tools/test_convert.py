"""The tool itself, its flags, and parquet files."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.files import png, turns, write_images
from tests.data_tools.files import ROOT, read_jsonl, run_tool
from tests.data_tools.foreign import JSONL_ROWS, convert, image, without_null, write, write_parquet
from vlm_grpo.cli.check import main as check
from vlm_grpo.data.converters import FORMATS, convert_files
from vlm_grpo.data.converters.roundtrip import ROUNDTRIP


def test_parquet_to_jsonl_and_back_is_equal(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    rows = write_parquet(tmp_path / "a.parquet")
    done = convert("parquet", "jsonl", tmp_path / "a.parquet", tmp_path / "a.jsonl", "--image_folder", images)
    assert (done.returncode, done.stderr) == (0, "")
    assert check(["--data_file_paths", str(tmp_path / "a.jsonl"), "--image_folders", str(images)]) == 0
    converted = read_jsonl(tmp_path / "a.jsonl")
    assert converted[1] == {
        "image": hashlib.sha256(png("lime")).hexdigest()[:32] + ".png",
        "conversations": turns("<image>What is 1?", "1"),
        "ability": "math",
        "extra_info": {"index": 1, "split": None},
    }
    assert converted[2]["conversations"][1]["value"] == {"bbox_2d": [2, 2, 3, 4]}
    assert len(list(images.iterdir())) == 3  # one file for each different image
    back = convert("jsonl", "parquet", tmp_path / "a.jsonl", tmp_path / "b.parquet", "--image_folder", images)
    assert back.returncode == 0
    assert [without_null(row) for row in pq.read_table(tmp_path / "b.parquet").to_pylist()] == list(
        map(without_null, rows)
    )


def test_parquet_columns_are_those_that_others_read(tmp_path: Path):
    rows = [
        {"image": "0.png", "conversations": turns("<image>q", {"a": 1}), "n": 1, "meta": {"k": 1}},
        {**JSONL_ROWS[0], "meta": 3},
    ]
    folder = str(write_images(tmp_path))
    convert_files([write(tmp_path / "a.jsonl", rows, "jsonl")], tmp_path / "b", "jsonl", "parquet", folder)
    table = pq.read_table(tmp_path / "b")
    assert table["problem"].to_pylist() == ["<image>q", "<image>How many?"]
    assert table["answer"].to_pylist() == ['{"a": 1}', "3"]
    assert table["images"].to_pylist() == [[image("red", "0.png")], [image("red", "0.png")]]
    assert table.schema.field("n").type == pa.int64()
    assert table["meta"].to_pylist() == ['{"k": 1}', "3"]  # no common type


def test_rows_without_images_have_an_empty_list_in_parquet(tmp_path: Path):
    rows = [{"conversations": turns("q", "a")}]
    convert_files([write(tmp_path / "a.jsonl", rows, "jsonl")], tmp_path / "b", "jsonl", "parquet", str(tmp_path))
    assert pq.read_table(tmp_path / "b").to_pylist() == [{"problem": "q", "answer": "a", "images": []}]
    for table in (pa.table({"problem": ["q"], "answer": ["a"]}), pq.read_table(tmp_path / "b")):
        pq.write_table(table, tmp_path / "c")
        convert_files([tmp_path / "c"], tmp_path / "d", "parquet", "jsonl", str(tmp_path))
        assert read_jsonl(tmp_path / "d") == rows


@pytest.mark.parametrize("numbers", [(1, 0.5), (1, 2**60 + 1, 0.5), (2**70, 1), (True, 1)])
def test_mixed_numbers_keep_their_kind(tmp_path: Path, numbers: tuple[float, ...]):
    """1 does not become 1.0, and no digit is lost, though a parquet column has one type."""
    rows = [{"n": number, "conversations": turns("q", "a")} for number in numbers]
    path = write(tmp_path / "a.jsonl", rows, "jsonl")
    convert_files([path], tmp_path / "b", "jsonl", "parquet", str(tmp_path))
    convert_files([tmp_path / "b"], tmp_path / "c", "parquet", "jsonl", str(tmp_path))
    assert (tmp_path / "c").read_text() == path.read_text()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([{"bytes": b"GIF or not", "path": None}], "PNG"),
        ([{"bytes": None, "path": None}], "{bytes, path}"),
    ],
)
def test_a_bad_image_in_a_parquet_file_names_the_row(tmp_path: Path, images: list[Any], said: str):
    write_parquet(tmp_path / "a.parquet", images)
    (tmp_path / "images").mkdir()
    done = convert(
        "parquet", "jsonl", tmp_path / "a.parquet", tmp_path / "a.jsonl", "--image_folder", tmp_path / "images"
    )
    assert done.returncode == 1 and f"{tmp_path}/a.parquet[4]" in done.stderr and said in done.stderr
    assert not (tmp_path / "a.jsonl").exists()


def test_an_image_file_is_never_overwritten(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    mine = images / (hashlib.sha256(png("lime")).hexdigest()[:32] + ".png")
    mine.write_bytes(b"mine")
    write_parquet(tmp_path / "a.parquet")
    done = convert("parquet", "jsonl", tmp_path / "a.parquet", tmp_path / "a.jsonl", "--image_folder", images)
    assert done.returncode == 1 and "no file of this name" in done.stderr
    assert mine.read_bytes() == b"mine" and not (tmp_path / "a.jsonl").exists()


def test_an_image_path_cannot_leave_the_folder(tmp_path: Path):
    """The path inside a parquet file is only trusted where this image lies there already."""
    (tmp_path / "images").mkdir()
    (tmp_path / "0.png").write_bytes(png("red"))
    write_parquet(tmp_path / "a.parquet", [image("red", "../0.png"), image("red", str(tmp_path / "0.png"))])
    convert_files([tmp_path / "a.parquet"], tmp_path / "b", "parquet", "jsonl", str(tmp_path / "images"))
    assert all(
        name.startswith(hashlib.sha256(png("red")).hexdigest()[:32])
        for row in read_jsonl(tmp_path / "b")
        for name in row["image"]
    )


def test_a_path_in_a_parquet_file_is_used_where_this_image_lies_already(tmp_path: Path):
    folder = str(write_images(tmp_path))  # 0.png is red
    write_parquet(tmp_path / "a.parquet", [image("red", "0.png"), image("blue", "0.png")])
    convert_files([tmp_path / "a.parquet"], tmp_path / "b", "parquet", "jsonl", folder)
    names = read_jsonl(tmp_path / "b")[0]["image"]
    assert names == ["0.png", hashlib.sha256(png("blue")).hexdigest()[:32] + ".png"]


def test_several_files_become_one(tmp_path: Path):
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "images").mkdir()
    both = f"{tmp_path}/a.parquet:{tmp_path}/b.parquet"
    words = ["--image_folder", tmp_path / "images"]
    assert convert("parquet", "llava", Path(both), tmp_path / "o.json", *words).returncode == 0
    rows = json.loads((tmp_path / "o.json").read_text())
    assert len(rows) == 10 and ROUNDTRIP not in rows[0]
    assert convert("parquet", "llava", Path(both), tmp_path / "o.json", *words).returncode == 2
    assert convert("parquet", "llava", Path(both), tmp_path / "o.json", *words, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--from", "jsonl", "--to", "jsonl", "--input", "a.jsonl"], 2, "both jsonl"),
        (["--from", "parquet", "--to", "jsonl", "--input", "a.parquet"], 2, "--image_folder to the folder"),
        (
            ["--from", "jsonl", "--to", "llava", "--input", "a.jsonl", "--image_folder", "images"],
            2,
            "--image_folder has no effect",
        ),
        (["--from", "jsonl", "--to", "swift", "--input", "a.jsonl", "--image_folder", "no"], 2, "no such folder"),
        (
            ["--from", "jsonl", "--to", "swift", "--input", "a.jsonl", "--output", "a.jsonl", "--overwrite"],
            2,
            "is also an input",
        ),
        (["--from", "jsonl", "--to", "swift", "--input", "none.jsonl"], 1, "no such file"),
        (["--from", "parquet", "--to", "jsonl", "--input", "a.jsonl", "--image_folder", "images"], 1, "a.jsonl"),
        (["--from", "llava", "--to", "jsonl", "--input", "a.parquet"], 1, "a.parquet"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, words: list[str], status: int, said: str):
    write_images(tmp_path)
    write(tmp_path / "a.jsonl", [JSONL_ROWS[0]], "jsonl")
    write_parquet(tmp_path / "a.parquet")
    done = run_tool("convert", "--output", "out", *words, cwd=tmp_path)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


STOPPED = """
import os, signal, sys
from vlm_grpo.data.converters import convert_files, parquet
from pathlib import Path

def stopping(entry, folder, read=parquet._to_file, calls=[]):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(entry, folder)

parquet._to_file = stopping
convert_files([Path(sys.argv[1])], Path(sys.argv[2]), "parquet", "jsonl", sys.argv[3])
"""


def test_kill_in_the_middle_leaves_the_old_file_and_whole_images(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "images").mkdir()
    (tmp_path / "a.jsonl").write_text("old")
    words = [tmp_path / "a.parquet", tmp_path / "a.jsonl", tmp_path / "images"]
    command = [sys.executable, "-c", STOPPED, *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a.jsonl").read_text() == "old"
    for path in (tmp_path / "images").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem)
    done = convert("parquet", "jsonl", words[0], words[1], "--image_folder", words[2], "--overwrite")
    assert done.returncode == 0 and len(read_jsonl(tmp_path / "a.jsonl")) == 5


def test_a_parquet_file_is_never_in_memory_as_a_whole(tmp_path: Path):
    """Forty row groups of 1 MB, of which a few are held at a time."""
    row = {"problem": "q", "answer": "a", "images": [{"bytes": png() + bytes(10**6), "path": None}]}
    with pq.ParquetWriter(tmp_path / "a", pa.Table.from_pylist([row]).schema, compression="none") as writer:
        for number in range(40):
            row["images"][0]["bytes"] = png() + bytes([number]) * 10**6
            writer.write_table(pa.Table.from_pylist([row]))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        count = sum(1 for _ in FORMATS["parquet"].read(tmp_path / "a", str(tmp_path)))
    finally:
        pa.set_memory_pool(before)
    assert count == 40
    assert 0 < pool.max_memory() < 24 * 10**6
