from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_tools.coco_files import HEIGHT, WIDTH, call, content, disc, list_rle, text_rle, tool, write_coco
from tests.data_tools.files import read_jsonl, run_tool
from vlm_grpo.data import check_source
from vlm_grpo.data.datasets.coco import segmentation_mask
from vlm_grpo.masks import CODECS, decode_mask, read_rle
from vlm_grpo.masks.raster import regions_to_mask
from vlm_grpo.rewards import score

TOOL = tool("coco_to_polygons")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "coco")


def convert(folder: Path, output: Path, *words: object) -> Any:
    return call(TOOL, "--coco_dir", folder, "--output_dir", output, *words)


def rows_of(folder: Path, output: Path, *words: object) -> list[dict]:
    done = convert(folder, output, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return read_jsonl(output / "val.jsonl")


def mask_of_row(row: dict) -> np.ndarray:
    truth = read_rle(row["mask"])
    return regions_to_mask([truth.boundaries], truth.height, truth.width)


def test_rows_are_what_training_reads(coco: Path, tmp_path: Path):
    rows = {row["ann_id"]: row for row in rows_of(coco, tmp_path)}
    assert set(rows) == {10, 11, 12, 14, 16}  # no crowd, no speck, not four birds
    asked = {number: row["conversations"][0]["value"] for number, row in rows.items()}
    assert asked == {
        10: "<image>the flower",
        12: "<image>the cup that is number 1 of 2, counted from the left",
        11: "<image>the cup that is number 2 of 2, counted from the left",
        14: "<image>the cup",
        16: "<image>the flower",
    }
    row = rows[14]
    assert row["image"] == "val2017/000000000003.jpg"
    assert {name: row[name] for name in ("id", "task", "box_space", "category", "terms", "image_id")} == {
        "id": "image3_ann14", "task": "seg", "box_space": "thousand", "category": "cup", "terms": 8, "image_id": 3
    }  # fmt: skip
    assert np.array_equal(mask_of_row(row), disc(60, 70, 30))
    assert check_source(str(tmp_path / "val.jsonl"), image_folders=str(coco)) == []


def test_the_gold_answer_earns_its_fit(coco: Path, tmp_path: Path):
    for row in rows_of(coco, tmp_path):
        gold = row["conversations"][1]["value"]
        completion = f"<think>a</think><answer>{json.dumps(gold)}</answer>"
        paid = score("mask_iou", completion, mask=row["mask"], box_space=row["box_space"])
        assert paid == pytest.approx(row["fit_iou"], abs=1e-4)
        covered = decode_mask(gold, HEIGHT, WIDTH)
        mask = mask_of_row(row)
        assert paid == pytest.approx((covered & mask).sum() / (covered | mask).sum())
        assert paid > (0.6 if row["category"] == "flower" and row["ann_id"] == 10 else 0.95)
        assert score("format", completion, task="seg") == 1.0


def test_two_polygons_are_two_parts(coco: Path, tmp_path: Path):
    (row,) = [row for row in rows_of(coco, tmp_path) if row["ann_id"] == 12]
    assert len(row["conversations"][1]["value"]["chebyshev"]) == 2
    expected = disc(25, 30, 20) | disc(25, 80, 20)
    mask = mask_of_row(row)
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


@pytest.mark.parametrize("codec", CODECS)
def test_codec_terms_and_starts(codec: str, coco: Path, tmp_path: Path):
    rows = rows_of(coco, tmp_path, "--codec", codec, "--terms", 12)
    more = rows_of(coco, tmp_path / "more", "--codec", codec, "--terms", 12, "--starts", 8)
    for row in rows:
        ((name, parts),) = row["conversations"][1]["value"].items()
        assert name == codec and row["terms"] == 12
        numbers = parts[0]["points"] if codec == "polygon" else parts[0]["x"]
        assert len(numbers) == 12
    assert check_source(str(tmp_path / "val.jsonl"), image_folders=str(coco)) == []
    assert sum(row["fit_iou"] for row in more) > sum(row["fit_iou"] for row in rows)


def test_what_is_left_out_is_counted(coco: Path, tmp_path: Path):
    done = convert(coco, tmp_path, "--min_area", 2500, "--min_fit", 0.95, "--max_same", 4)
    assert done.stdout.splitlines()[:2] == [
        "1 objects left out: a fit below 0.95",
        "5 objects left out: smaller than 2500 pixels",
    ]
    assert {row["ann_id"] for row in read_jsonl(tmp_path / "val.jsonl")} == {11, 12, 14, 16}
    assert 20 in {row["ann_id"] for row in rows_of(coco, tmp_path / "b", "--max_same", 4)}
    assert 15 in {row["ann_id"] for row in rows_of(coco, tmp_path / "c", "--min_area", 10)}
    assert {row["ann_id"] for row in rows_of(coco, tmp_path / "d", "--max_same", 1)} == {10, 14, 16}
    assert len(rows_of(coco, tmp_path / "e", "--limit", 2)) == 2


def test_no_image_is_in_both_parts(coco: Path, tmp_path: Path):
    kept = set()
    for seed in (0, 0, 1, 2, 3):
        val = rows_of(coco, tmp_path, "--val_split_ratio", 0.5, "--seed", seed, "--overwrite")
        train = read_jsonl(tmp_path / "train.jsonl")
        images = [{row["image"] for row in part} for part in (train, val)]
        assert not images[0] & images[1] and len(images[1]) == 2 and len(train) + len(val) == 5
        kept.add(frozenset(images[1]))
    assert 1 < len(kept) < 5


def test_processes_make_the_same_file(coco: Path, tmp_path: Path):
    rows_of(coco, tmp_path / "one")
    words = ("--coco_dir", coco, "--output_dir", tmp_path / "two", "--workers", 2)
    done = run_tool("coco_to_polygons", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"{tmp_path / 'two' / 'val.jsonl'}: 5 rows\n")
    assert (tmp_path / "one" / "val.jsonl").read_bytes() == (tmp_path / "two" / "val.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (None, "polygons [[x1, y1, x2, y2, ...], ...] or RLE"),
        ([], "polygons"),
        ([[1, 2, 3, 4]], "each polygon with at least three points"),
        ([[1, 2, 3, 4, 5]], "each polygon with at least three points"),
        ([[1, 2, 3, 4, 5, "6"]], "each polygon with at least three points"),
        ([[1, 2, 3, 4, 5, 1e9]], "points inside the image of 160 x 107 pixels"),
        ([[-50, 2, 3, 4, 5, 6]], "points inside the image of 160 x 107 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [5]}, "must sum to 17120 pixels"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "RLE of 107 x 160 pixels (height, width)"),
        ({"counts": [5]}, 'must be {"size"'),
    ],
)
def test_a_bad_annotation_is_named_by_file_and_index(segmentation: Any, expected: str, tmp_path: Path):
    what = content()
    what["annotations"][1]["segmentation"] = segmentation
    coco = write_coco(tmp_path / "coco", what)
    done = convert(coco, tmp_path / "out")
    place = f"{coco / 'annotations' / 'instances_val2017.json'} annotations[1] (id 11)"
    assert done.returncode == 1 and place in done.stderr and expected in done.stderr
    assert list((tmp_path / "out").iterdir()) == []  # all or nothing
    done = convert(coco, tmp_path / "out", "--skip_bad")
    assert done.returncode == 1 and place in done.stderr
    assert {row["ann_id"] for row in read_jsonl(tmp_path / "out" / "val.jsonl")} == {10, 12, 14, 16}


def test_a_bad_entry_of_another_kind_is_named_too(tmp_path: Path):
    what = content()
    what["annotations"][0]["image_id"] = 99
    done = convert(write_coco(tmp_path / "coco", what), tmp_path / "out")
    assert done.returncode == 1 and "annotations[0] (id 10)  image_id  99" in done.stderr


def test_masks_of_all_three_kinds():
    one = disc(60, 50, 30)
    for value in (list_rle(one), text_rle(one)):
        assert np.array_equal(segmentation_mask(value, HEIGHT, WIDTH), one)
    square = [[10, 20, 30, 20, 30, 50, 10, 50]]
    mask = segmentation_mask(square, HEIGHT, WIDTH)
    assert mask.sum() == 600 and mask[20:50, 10:30].all()


def test_nothing_to_ask_for_is_a_problem(coco: Path, tmp_path: Path):
    done = convert(coco, tmp_path, "--min_area", 10**6, "--skip_bad")
    assert done.returncode == 1 and "at least one object" in done.stderr
    assert not (tmp_path / "val.jsonl").exists()
    done = convert(coco, tmp_path, "--min_area", 4500, "--val_split_ratio", 0.25)  # one object: one file stays empty
    assert done.returncode == 1 and ".jsonl  rows   none" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codec", "chebishev"], "unknown codec 'chebishev'; did you mean 'chebyshev'"),
        (["--terms", 2], "--terms must be from 3 to 64, got 2"),
        (["--starts", 0], "--starts must be at least 1, got 0"),
        (["--val_split_ratio", 1], "--val_split_ratio must be at least 0 and below 1, got 1.0"),
        (["--val_split_ratio", 0.01], "--val_split_ratio 0.01 of 4 images leaves one split empty"),
        (["--url", "http://127.0.0.1:9"], "--url has no effect without --download"),
        (["--split", "test2017", "--download"], "--download supports train2017, val2017, train2014 and val2014"),
    ],
)
def test_a_wrong_command_line_is_refused(words: list, message: str, coco: Path, tmp_path: Path):
    done = convert(coco, tmp_path / "out", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_an_output_is_kept_unless_asked(coco: Path, tmp_path: Path):
    (tmp_path / "val.jsonl").write_text("mine")
    done = convert(coco, tmp_path)
    assert done.returncode == 2 and "replace it with --overwrite" in done.stderr
    assert (tmp_path / "val.jsonl").read_text() == "mine"
    assert len(rows_of(coco, tmp_path, "--overwrite")) == 5


def test_two_splits_fill_one_folder(coco: Path, tmp_path: Path):
    annotations = shutil.copytree(coco, tmp_path / "coco") / "annotations"
    shutil.copy(annotations / "instances_val2017.json", annotations / "instances_train2017.json")
    for split in ("train2017", "val2017"):
        assert convert(tmp_path / "coco", tmp_path, "--split", split).returncode == 0
    for split in ("train", "val"):
        rows = read_jsonl(tmp_path / f"{split}.jsonl")
        assert len(rows) == 5 and all(row["image"].startswith(f"{split}2017/") for row in rows)


def test_a_split_that_is_not_there_is_named(coco: Path, tmp_path: Path):
    done = convert(coco, tmp_path, "--split", "train2017")
    assert done.returncode == 1 and "instances_train2017.json" in done.stderr and "no such file" in done.stderr


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(coco: Path, tmp_path: Path) -> Iterator[str]:
    """COCO's own layout of archives, served on this machine."""
    files = {"annotations/annotations_trainval2017.zip": ["annotations"], "zips/val2017.zip": ["val2017"]}
    for name, folders in files.items():
        path = tmp_path / "server" / name
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as archive:
            for folder in folders:
                for file in (coco / folder).iterdir():
                    archive.write(file, f"{folder}/{file.name}")
            archive.writestr(f"{folders[0]}/other.json", "{}")
    listener = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "server")))
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}"
    listener.shutdown()
    listener.server_close()


def test_download_fetches_what_is_missing(server: str, coco: Path, tmp_path: Path):
    there = tmp_path / "fetched"
    rows = rows_of(there, tmp_path / "out", "--download", "--url", server)
    assert rows == rows_of(coco, tmp_path / "same")
    assert [path.name for path in (there / "annotations").iterdir()] == ["instances_val2017.json"]
    assert check_source(str(tmp_path / "out" / "val.jsonl"), image_folders=str(there)) == []
    (there / "val2017" / "000000000001.jpg").unlink()
    done = convert(there, tmp_path / "again", "--download", "--url", server)
    assert done.returncode == 0 and "1 new images" in done.stdout


def test_a_server_without_coco_is_named(server: str, tmp_path: Path):
    done = convert(tmp_path / "fetched", tmp_path / "out", "--download", "--url", server, "--split", "val2014")
    assert (
        done.returncode == 2
        and f"{server}/annotations/annotations_trainval2014.zip: the server responded 404" in done.stderr
    )
