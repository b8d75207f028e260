from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.files import turns, write_jsonl
from tests.data_tools.files import ROOT, run_tool
from vlm_grpo.data.split import RowGroups, sample_held_out


def rows(count: int, images: int) -> list[dict]:
    return [{"id": n, "image": f"{n % images}.png", "conversations": turns("<image>q", str(n))} for n in range(count)]


def split(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    (folder / "out").mkdir(exist_ok=True)
    return run_tool("split", "--output_dir", folder / "out", *words)


def images_of(path: Path) -> set[str]:
    return {json.loads(line)["image"] for line in path.read_text().splitlines()}


def test_rows_that_share_an_image_by_way_of_others_are_one_group():
    groups = RowGroups()
    for keys in (["a"], ["b"], [], ["c"], ["b", "a"], []):
        groups.add(keys)
    assert groups.members() == [[0, 1, 4], [2], [3], [5]]


def test_held_out_takes_whole_groups_that_fit():
    groups = [[0, 1, 2, 3], [4], [5], [6]]
    assert sample_held_out(groups, 3, seed=0) == {4, 5, 6}
    assert sample_held_out(groups, 1, seed=0) in ({4}, {5}, {6})
    assert len({frozenset(sample_held_out(groups, 1, seed=seed)) for seed in range(20)}) == 3
    with pytest.raises(ValueError, match="the smallest has 2 rows"):
        sample_held_out([[0, 1], [2, 3]], 1, seed=0)
    with pytest.raises(ValueError, match="both splits need rows"):
        sample_held_out(groups, 7, seed=0)


def test_no_image_is_in_both_parts_and_no_line_is_lost(tmp_path: Path):
    paths = [write_jsonl(tmp_path / "a.jsonl", rows(40, 10)), write_jsonl(tmp_path / "b.jsonl", rows(30, 15))]
    done = split(tmp_path, "--data_file_paths", ":".join(paths), "--val_split_ratio", 0.2)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("a", "b"):
        before = (tmp_path / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        parts = [
            (tmp_path / "out" / f"{name}_{part}.jsonl").read_bytes().splitlines(keepends=True)
            for part in ("train", "val")
        ]
        assert sorted(parts[0] + parts[1]) == sorted(before)
        assert all([line for line in before if line in set(part)] == part for part in parts)  # in their old order
    train, val = (
        {*images_of(tmp_path / "out" / f"a_{part}.jsonl"), *images_of(tmp_path / "out" / f"b_{part}.jsonl")}
        for part in ("train", "val")
    )
    assert train and val and not train & val
    assert "70 rows in 15 groups" in done.stdout and "asked for" in done.stdout


def test_the_folder_decides_whether_an_image_is_the_same(tmp_path: Path):
    """0.png of folder x is not 0.png of folder y, but y/../x/0.png is."""
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    a = write_jsonl(tmp_path / "a.jsonl", [{"image": "0.png", "conversations": turns("<image>q", "a")}])
    b = write_jsonl(tmp_path / "b.jsonl", [{"image": "0.png", "conversations": turns("<image>q", "b")}])
    words = ["--data_file_paths", f"{a}:{b}", "--val_rows", 1]
    assert split(tmp_path, *words, "--image_folders", f"{tmp_path}/x:{tmp_path}/y").returncode == 0
    same = split(tmp_path, *words, "--image_folders", tmp_path / "x", "--overwrite")
    assert same.returncode == 2 and "the smallest has 2 rows" in same.stderr


def test_seed_group_and_number_are_used(tmp_path: Path):
    content = [{**row, "scene": row["id"] // 20} for row in rows(40, 1)]
    words = ["--data_file_paths", write_jsonl(tmp_path / "a.jsonl", content), "--overwrite", "--group_by"]
    val = tmp_path / "out" / "a_val.jsonl"
    assert split(tmp_path, *words, "image", "--val_rows", 10).returncode == 2  # all rows share one image
    assert split(tmp_path, *words, "none", "--val_rows", 10).returncode == 0
    first = val.read_bytes()
    assert first.count(b"\n") == 10
    assert split(tmp_path, *words, "none", "--val_rows", 10).returncode == 0
    assert val.read_bytes() == first
    assert split(tmp_path, *words, "none", "--val_rows", 10, "--seed", 1).returncode == 0
    assert val.read_bytes() != first
    assert split(tmp_path, *words, "scene", "--val_split_ratio", 0.5).returncode == 0
    assert {json.loads(line)["scene"] for line in val.read_text().splitlines()} in ({0}, {1})
    missing = split(tmp_path, *words, "place", "--val_rows", 10)
    assert missing.returncode == 1 and "a.jsonl:1 " in missing.stderr and "40 problems" in missing.stderr


def test_lines_are_copied_byte_for_byte(tmp_path: Path):
    lines = [b'{"image":"%d.png",  "conversations": [{"from":"human","value":"<image>\\u00e9"},' % n for n in range(4)]
    lines = [line + b'{"from":"gpt","value":"1"}]}\r\n' for line in lines]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + lines[0].rstrip().replace(b"0.", b"9."))
    assert split(tmp_path, "--data_file_paths", tmp_path / "a.jsonl", "--val_rows", 2).returncode == 0
    parts = [(tmp_path / "out" / f"a_{part}.jsonl").read_bytes() for part in ("train", "val")]
    assert sorted(b"".join(parts).splitlines(keepends=True)) == sorted(
        [*lines, lines[0].rstrip().replace(b"0.", b"9.") + b"\n"]
    )


def test_outputs_are_not_replaced_unasked(tmp_path: Path):
    words = ["--data_file_paths", write_jsonl(tmp_path / "a.jsonl", rows(4, 4)), "--val_rows", 2]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_val.jsonl").write_text("mine")
    done = split(tmp_path, *words)
    assert done.returncode == 2 and "--overwrite" in done.stderr
    assert (tmp_path / "out" / "a_val.jsonl").read_text() == "mine"
    assert not (tmp_path / "out" / "a_train.jsonl").exists()
    assert split(tmp_path, *words, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--data_file_paths", "a.jsonl"], 2, "--val_split_ratio"),
        (["--data_file_paths", "a.jsonl", "--val_rows", "1", "--val_split_ratio", "0.1"], 2, "not allowed with"),
        (["--data_file_paths", "a.jsonl", "--val_split_ratio", "1.5"], 2, "between 0 and 1"),
        (["--data_file_paths", "a.jsonl", "--val_rows", "0"], 2, "both splits need rows"),
        (["--data_file_paths", "a.jsonl", "--val_rows", "1", "--output_dir", "no"], 2, "create it first"),
        (["--data_file_paths", "a.jsonl:b/a.jsonl", "--val_rows", "1"], 2, "two files are named a"),
        (["--data_file_paths", "none.jsonl", "--val_rows", "1"], 1, "no such file"),
        (["--data_file_paths", "bad.jsonl", "--val_rows", "1"], 1, "bad.jsonl:2"),
        (["--data_file_paths", "a.csv", "--val_rows", "1"], 2, "expected a jsonl file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, words: list[str], status: int, said: str):
    for name in ("b", "out"):
        (tmp_path / name).mkdir()
    for name in ("a.jsonl", "b/a.jsonl"):
        write_jsonl(tmp_path / name, rows(4, 4))
    write_jsonl(tmp_path / "bad.jsonl", [*rows(1, 1), "{"])
    (tmp_path / "a.csv").write_text("question,answer\n1,2\n")
    done = run_tool("split", "--output_dir", "out", *words, cwd=tmp_path)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


STOPPED = """
import os, signal, sys
from vlm_grpo import io
from vlm_grpo.data.readers import text_files

def stop(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def some_lines(path, read=text_files.content_lines):
    for line in read(path):
        yield line if line[0] < 3 else stop()

source = text_files.JsonlSource("{data}", None)
if "{moment}" == "replace":
    io.os.replace = stop
else:
    text_files.content_lines = some_lines
sys.path.insert(0, "data_tools")
import split
split.write_parts([source], [("{out}/a_train.jsonl", "{out}/a_val.jsonl")], {{1}})
"""


@pytest.mark.parametrize("moment", ["line", "replace"])
def test_kill_in_the_middle_leaves_the_old_files(tmp_path: Path, moment: str):
    """`kill -9` after some lines, and when everything is written and nothing has its name yet."""
    data, out = write_jsonl(tmp_path / "a.jsonl", rows(4, 4)), tmp_path / "out"
    out.mkdir()
    (out / "a_val.jsonl").write_text("old")
    code = STOPPED.format(moment=moment, data=data, out=out)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"})
    assert done.returncode == -signal.SIGKILL
    assert (out / "a_val.jsonl").read_text() == "old" and not (out / "a_train.jsonl").exists()
    # What was left behind does not matter.
    assert split(tmp_path, "--data_file_paths", data, "--val_rows", 2, "--overwrite").returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_train.jsonl", "a_val.jsonl"]
