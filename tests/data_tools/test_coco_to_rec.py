from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data_tools.files import (
    INSTANCES,
    REFS,
    changed_instances,
    read_jsonl,
    reference,
    run_tool,
    write_refcoco,
)
from vlm_grpo.cli.check import main as check
from vlm_grpo.data.datasets.coco import read_instances
from vlm_grpo.data.datasets.refcoco import read_refs
from vlm_grpo.data.errors import DataError


def instances_file(folder: Path, content: Any = INSTANCES) -> Path:
    path = folder / "instances_val2014.json"
    path.write_text(json.dumps(content))
    return path


def test_a_split_has_a_row_for_each_sentence(tmp_path: Path):
    refs, output = write_refcoco(tmp_path), tmp_path / "val.jsonl"
    done = run_tool("coco_to_rec", "--refs", refs, "--split", "val", "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 references (testA 1, train 1, val 1)" in done.stdout and "3 rows, 1 images" in done.stdout
    rows = read_jsonl(output)
    assert [row["conversations"][0]["value"] for row in rows] == [
        "<image>the person",
        "<image>person alone",
        "<image>him",
    ]
    assert rows[1] == {
        "id": "ref2_sent21",
        "image": "COCO_train2014_000000000025.jpg",
        "conversations": [
            {"from": "human", "value": "<image>person alone"},
            {"from": "gpt", "value": {"bbox_2d": [150.0, 50.0, 200, 100.0]}},  # 150 + 50.4 is cut at the border
        ],
        "image_id": 25,
        "width": 200,
        "height": 100,
        "task": "rec",
        "box_space": "original",
        "ann_id": 4,
        "category": "person",
        "ref_id": 2,
    }


def test_corners_come_from_width_and_height(tmp_path: Path):
    refs, output = write_refcoco(tmp_path), tmp_path / "train.jsonl"
    assert run_tool("coco_to_rec", "--refs", refs, "--split", "train", "--output", output).returncode == 0
    assert read_jsonl(output)[0]["conversations"][1]["value"] == {"bbox_2d": [103.93, 299.99, 238.15, 477.41]}


def test_flags_change_the_rows(tmp_path: Path):
    refs, output = write_refcoco(tmp_path), tmp_path / "o.jsonl"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = refs.with_name("instances.json").rename(elsewhere / "moved.json")
    words = ["--refs", refs, "--instances", moved, "--split", "val", "--sentences", "first", "--output", output]
    config = "train2014/COCO_train2014_{id:012d}.jpg"
    assert run_tool("coco_to_rec", *words, "--image_path", config).returncode == 0
    rows = read_jsonl(output)
    assert [row["id"] for row in rows] == ["ref2_sent20"]
    assert rows[0]["image"] == "train2014/COCO_train2014_000000000025.jpg"
    again = run_tool("coco_to_rec", *words)
    assert again.returncode == 2 and "exists" in again.stderr
    assert run_tool("coco_to_rec", *words, "--overwrite").returncode == 0
    assert read_jsonl(output)[0]["image"] == "COCO_train2014_000000000025.jpg"


def test_plain_coco_asks_for_categories_that_occur_once(tmp_path: Path):
    output = tmp_path / "o.jsonl"
    assert run_tool("coco_to_rec", "--instances", instances_file(tmp_path), "--output", output).returncode == 0
    rows = read_jsonl(output)  # two persons in image 9, a crowd of dogs in image 25
    assert [(row["image_id"], row["conversations"][0]["value"]) for row in rows] == [
        (9, "<image>the dog"),
        (25, "<image>the person"),
    ]


def test_ovd_lists_all_boxes_of_a_category_in_thousandths(tmp_path: Path):
    output, path = tmp_path / "o.jsonl", instances_file(tmp_path)
    assert run_tool("coco_to_rec", "--instances", path, "--task", "ovd", "--output", output).returncode == 0
    rows = {row["id"]: row for row in read_jsonl(output)}
    assert set(rows) == {"image9_category1", "image9_category18", "image25_category1"}
    row = rows["image9_category1"]
    assert (row["task"], row["box_space"]) == ("ovd", "thousand")
    assert row["conversations"][0]["value"] == "<image>Find every person in the image."
    assert row["conversations"][1]["value"] == [  # 10 of 640 pixels are 15.6 thousandths, 20 of 480 are 41.7
        {"Position": [0, 0, 16, 42], "Confidence": 1.0},
        {"Position": [16, 0, 31, 42], "Confidence": 1.0},
    ]


def test_a_box_thinner_than_a_thousandth_keeps_an_area(tmp_path: Path):
    path = instances_file(tmp_path, changed_instances("annotations", 0, bbox=[300, 479.9, 0.1, 0.1]))
    output = tmp_path / "o.jsonl"
    assert run_tool("coco_to_rec", "--instances", path, "--task", "ovd", "--output", output).returncode == 0
    answer = next(row for row in read_jsonl(output) if row["category"] == "dog")["conversations"][1]["value"]
    assert answer[0]["Position"] == [469, 999, 470, 1000]


@pytest.mark.parametrize(
    ("part", "index", "fields", "said"),
    [
        ("annotations", 1, {"bbox": [0, 0, 0, 20]}, "annotations[1] (id 2)"),
        ("annotations", 1, {"bbox": [0, 0, 641.5, 20]}, "a box inside its image of 640 x 480 pixels"),
        ("annotations", 1, {"bbox": [0, 0, "9", 20]}, "four numbers"),
        ("annotations", 1, {"bbox": [0, 0, float("nan"), 20]}, "four numbers"),
        ("annotations", 1, {"image_id": 7}, "the id of an image of this file"),
        ("annotations", 1, {"image_id": []}, "the id of an image of this file"),
        ("annotations", 1, {"category_id": 7}, "the id of a category of this file"),
        ("annotations", 1, {"id": 1}, "each id once"),
        ("annotations", 1, {"id": None}, "annotations[1]"),
        ("images", 0, {"width": 0}, "images[0] (id 9)"),
        ("images", 0, {"file_name": ""}, "the name of an image file"),
        ("categories", 0, {"name": None}, "categories[0] (id 1)"),
    ],
)
def test_a_bad_annotation_is_named_and_nothing_is_written(
    tmp_path: Path, part: str, index: int, fields: dict[str, Any], said: str
):
    path, output = instances_file(tmp_path, changed_instances(part, index, **fields)), tmp_path / "o.jsonl"
    done = run_tool("coco_to_rec", "--instances", path, "--output", output)
    assert done.returncode == 1 and said in done.stderr and "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_bad_can_be_left_out(tmp_path: Path):
    path = instances_file(tmp_path, changed_instances("annotations", 1, bbox=[0, 0, 0, 20]))
    output = tmp_path / "o.jsonl"
    done = run_tool("coco_to_rec", "--instances", path, "--output", output, "--skip_bad")
    assert done.returncode == 1 and "1 problem and 0 warnings" in done.stderr
    # The other person of image 9 is not asked for: without the broken box nobody knows that it is the only one.
    assert [row["id"] for row in read_jsonl(output)] == ["image9_ann1", "image25_ann4"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ann_id": 77}, "[1] (ref_id 1)"),
        ({"image_id": 25}, "9, the image of annotation 2"),
        ({"ref_id": 0}, "a unique integer"),
        ({"split": None}, "the name of a split"),
        ({"sentences": []}, "sent_id"),
        ({"sentences": [{"sent_id": 3, "sent": " "}]}, "the text of the expression"),
        ({"sentences": [{"sent_id": "3", "sent": "a"}]}, "sentences[0].sent_id"),
    ],
)
def test_a_bad_reference_is_named(tmp_path: Path, change: dict[str, Any], said: str):
    refs = write_refcoco(tmp_path, [REFS[0], {**REFS[1], **change}, "x"])
    done = run_tool("coco_to_rec", "--refs", refs, "--split", "train", "--output", tmp_path / "o.jsonl")
    assert done.returncode == 1 and said in done.stderr and "[2] (ref_id None)" in done.stderr
    assert not (tmp_path / "o.jsonl").exists()


class Malicious:
    """Unpickled the usual way, it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.trace}",)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path):
    trace = tmp_path / "trace"
    refs = write_refcoco(tmp_path, [*REFS, Malicious(trace)])
    done = run_tool("coco_to_rec", "--refs", refs, "--split", "val", "--output", tmp_path / "o.jsonl")
    assert done.returncode == 1 and "it references posix.system" in done.stderr
    assert not trace.exists() and not (tmp_path / "o.jsonl").exists()
    pickle.loads(refs.read_bytes())
    assert trace.exists()  # so the file was dangerous


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({}), pickle.dumps([]), pickle.dumps(REFS)[:-9]])
def test_a_file_that_is_no_list_of_references_is_refused(tmp_path: Path, content: bytes):
    path = write_refcoco(tmp_path)
    path.write_bytes(content)
    with pytest.raises(DataError, match="a pickled list of references"):
        read_refs(path, read_instances(tmp_path / "instances.json"))


def test_text_of_python_2_is_read(tmp_path: Path):
    """Python 2 wrote text as bytes; 0xe9 is an e with an accent in Latin-1 and not UTF-8."""
    path = write_refcoco(tmp_path)
    said = b"(dp4\nS'sent_id'\np5\nI7\nsS'sent'\np6\nS'caf\\xe9 table'\np7\ns"
    head = b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'ref_id'\np8\nI5\nsS'ann_id'\np9\nL1L\nsS'image_id'\np10\nI9\ns"
    path.write_bytes(head + b"S'sentences'\np11\n(lp12\n" + said + b"asa.")
    refs, problems = read_refs(path, read_instances(tmp_path / "instances.json"))
    assert not problems
    assert (refs[0].id, refs[0].object_id, refs[0].sentences[0].text) == (5, 1, "café table")


def test_images_are_compared_with_their_annotation(tmp_path: Path):
    refs, images = write_refcoco(tmp_path), tmp_path / "images"
    images.mkdir()
    words = ["--refs", refs, "--split", "val", "--image_folder", images, "--output", tmp_path / "o.jsonl"]
    missing = run_tool("coco_to_rec", *words)
    assert missing.returncode == 1 and "no such file" in missing.stderr
    path = images / "COCO_train2014_000000000025.jpg"
    Image.new("RGB", (100, 200)).save(path)
    wrong = run_tool("coco_to_rec", *words)
    assert wrong.returncode == 1 and "100 x 200 pixels" in wrong.stderr and "200 x 100, as annotated" in wrong.stderr
    Image.new("RGB", (200, 100)).save(path)
    assert run_tool("coco_to_rec", *words).returncode == 0
    assert check(["--data_file_paths", str(tmp_path / "o.jsonl"), "--image_folders", str(images)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--refs or --instances is required"),
        (["--refs", "refs(unc).p"], "--refs needs --split"),
        (["--refs", "refs(unc).p", "--split", "val", "--task", "ovd"], "plain COCO"),
        (["--instances", "instances.json", "--split", "val"], "--split has no effect without --refs"),
        (["--instances", "instances.json", "--sentences", "all"], "--sentences has no effect without --refs"),
        (["--refs", "refs(unc).p", "--split", "test"], "testA"),
        (["--instances", "instances.json", "--image_path", "{name}"], "--image_path {name}"),
        (["--instances", "instances.json", "--image_folder", "nowhere"], "no such folder"),
        (["--instances", "instances.json", "--output", "no/folder.jsonl"], "create it first"),
    ],
)
def test_mistakes_of_the_caller_exit_with_two(tmp_path: Path, words: list[str], said: str):
    write_refcoco(tmp_path)
    done = run_tool("coco_to_rec", "--output", "o.jsonl", *words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}'])
def test_a_file_that_is_no_annotation_file_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "instances.json"
    path.write_text(content)
    done = run_tool("coco_to_rec", "--instances", path, "--output", tmp_path / "o.jsonl")
    assert done.returncode == 1 and str(path) in done.stderr and "Traceback" not in done.stderr


def test_a_reference_of_google_has_only_its_fields_read(tmp_path: Path):
    refs = write_refcoco(tmp_path, [reference(3, 1, 9, "val", "a dog")], name="refs(google).p")
    done = run_tool("coco_to_rec", "--refs", refs, "--split", "val", "--output", tmp_path / "o.jsonl")
    assert done.returncode == 0 and len(read_jsonl(tmp_path / "o.jsonl")) == 1
