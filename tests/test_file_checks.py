"""Paths of what is no regular file: a named pipe that nobody writes to would hold a run for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.files import turns, write_jsonl
from vlm_grpo.cli.templates import read_template
from vlm_grpo.data import DataError, check_source, load_dataset
from vlm_grpo.data.datasets.coco import read_instances
from vlm_grpo.data.images import open_image
from vlm_grpo.envs.retrieval.corpus import read_documents
from vlm_grpo.prompts import load_prompt
from vlm_grpo.records import ImageRef


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """What hangs fails instead."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_file_is_a_regular_file(suffix: str, streaming: bool, tmp_path: Path):
    with pytest.raises(DataError, match=rf"a\.{suffix} .*a named pipe, not a regular file"):
        load_dataset(pipe(tmp_path / f"a.{suffix}"), streaming=streaming)


def test_a_device_as_data_file():
    (problem,) = check_source(["/dev/zero", "a"][:1])
    assert "a device, not a regular file" in problem.found


@pytest.mark.parametrize("decode", [False, True])
def test_images_and_videos_are_regular_files(decode: bool, tmp_path: Path):
    pipe(tmp_path / "a.png")
    pipe(tmp_path / "a.mp4")
    os.symlink("/dev/zero", tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    question = {"conversations": turns("q", "a")}
    rows = [{"image": f"{name}.png", **question} for name in "abc"] + [{"video": "a.mp4", **question}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    problems = [p for p in check_source(data, image_folders=str(tmp_path), decode=decode) if not p.is_warning]
    assert [(problem.where[-2:], problem.found.split(": ", 1)[1]) for problem in problems] == [
        (":1", "a named pipe, not a regular file"),
        (":2", "a device, not a regular file"),
        (":3", "a folder, not a regular file"),
        (":4", "a named pipe, not a regular file"),
    ]
    with pytest.raises(ValueError, match=r"x:1: cannot decode .*named pipe"):
        open_image(ImageRef(str(tmp_path / "a.png"), "x:1"))


def test_other_files_that_are_named(tmp_path: Path):
    path = pipe(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"--format_prompt .*named pipe"):
        load_prompt(path)
    with pytest.raises(ValueError, match=r"--chat_template_path .*named pipe"):
        read_template(path)
    with pytest.raises(DataError, match="named pipe"):
        read_instances(path)
    assert "named pipe" in next(read_documents([path])).found
