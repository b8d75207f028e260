from __future__ import annotations

import base64
import tracemalloc
from pathlib import Path

import pytest

from tests.data.files import turns, write_images, write_jsonl
from tests.data.test_images import noise, saved
from vlm_grpo.data import DataError, check_source, load_dataset, validation
from vlm_grpo.data.errors import Problem, problem_table

GOOD = {"image": "0.png", "conversations": turns("<image>q", "a")}
BAD_IMAGE = "an image that can be decoded"


def problems(folder: Path, rows: list, **options: object) -> list[tuple[str, str, str]]:
    path = write_jsonl(folder / "a.jsonl", rows)
    found = check_source(path, image_folders=str(write_images(folder)), **options)
    return [(problem.where.removeprefix(f"{folder}/"), problem.field, problem.found) for problem in found]


def test_good_data_has_no_problems(tmp_path: Path):
    assert problems(tmp_path, [GOOD, {"conversations": turns("q", 3)}]) == []


def test_problems_come_in_the_order_of_the_lines(tmp_path: Path):
    write_images(tmp_path)
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:40])
    (tmp_path / "images" / "empty.png").write_bytes(b"")
    rows = [
        "{",
        GOOD,
        "",
        {**GOOD, "image": "9.png"},
        {**GOOD, "image": "cut.png", "id": []},
        {**GOOD, "image": "empty.png"},
    ]
    found = problems(tmp_path, rows)
    assert [where for where, _, _ in found] == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5", "a.jsonl:5", "a.jsonl:6"]
    assert [field for _, field, _ in found] == ["line", "image", "id", "image", "image"]
    assert found[1][2] == f"{tmp_path}/images/9.png: no such file"
    assert found[4][2] == f"{tmp_path}/images/empty.png: the file is empty"


def test_every_file_is_looked_at_once_and_reported_for_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    look = validation.validate_image
    monkeypatch.setattr(
        "vlm_grpo.data.validation.validate_image", lambda ref, decode: seen.append(ref) or look(ref, decode=decode)
    )
    rows = [GOOD, {**GOOD, "image": "9.png"}] * 300
    found = problems(tmp_path, rows)
    assert len(found) == 300
    assert found[-1][0] == "a.jsonl:600"
    assert len(seen) == 2


def test_files_folders_and_methods_pair_up(tmp_path: Path):
    images = write_images(tmp_path)
    first, second = (write_jsonl(tmp_path / name, [GOOD]) for name in ("a.jsonl", "b.jsonl"))
    data = load_dataset(f"{first}:{second}", image_folders=f"{images}:{images}", reward_method="exact:math")
    assert [row["record"].method for row in data] == ["exact", "math"]
    absolute = write_jsonl(tmp_path / "c.jsonl", [{**GOOD, "image": str(images / "1.png")}])
    data = load_dataset(f"{first}:{absolute}", image_folders=f"{images}/:", reward_method=":text")
    assert [row["images"][0].source for row in data] == [str(images / "0.png"), str(images / "1.png")]
    assert [row["record"].method for row in data] == [None, "text"]
    assert len(load_dataset([first, second], image_folders=str(images))) == 2


@pytest.mark.parametrize(
    ("options", "where", "found"),
    [
        ({"image_folders": "x:y:z"}, "--image_folders", "3 for 2 data files"),
        ({"image_folders": "/no/such/folder"}, "--image_folders", "'/no/such/folder'"),
        ({"reward_method": "exact:exakt"}, "--reward_method", "'exakt'"),
        ({"reward_method": "a:b:c"}, "--reward_method", "3 for 2 data files"),
    ],
)
def test_options_that_do_not_fit_are_problems(tmp_path: Path, options: dict, where: str, found: str):
    path = write_jsonl(tmp_path / "a.jsonl", [{"conversations": turns("q", "a")}])
    (problem,) = check_source(f"{path}:{path}", **options)
    assert (problem.where, problem.found) == (where, found)


def test_a_file_that_cannot_be_opened_does_not_hide_problems_of_others(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ["{"])
    found = check_source(f"{tmp_path}/none.jsonl:{path}")
    assert [problem.where for problem in found] == [f"{tmp_path}/none.jsonl", f"{path}:1"]


@pytest.mark.parametrize("source", ["", [], "a.jsonl:"])
def test_an_empty_name_is_a_problem(source: str | list[str]):
    found = check_source(source)
    assert ("data", "files") in [(problem.where, problem.field) for problem in found]


def test_loading_raises_the_same_table(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ["{", GOOD, {"id": 1}])
    folder = str(write_images(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset(path, image_folders=folder)
    assert caught.value.problems == check_source(path, image_folders=folder)
    assert problem_table(caught.value.problems) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_without_check_a_bad_row_is_named_when_it_is_asked_for(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, "{"])
    data = load_dataset(path, image_folders=str(write_images(tmp_path)), check=False)
    assert data[0]["answer"] == "a"
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        data[1]


def test_unplaced_images_are_one_warning_however_many_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_jsonl(tmp_path / "a.jsonl", [{**GOOD, "conversations": turns("q", "a")}] * 5)
    assert len(load_dataset(path, image_folders=str(write_images(tmp_path)))) == 5
    (entry,) = caplog.records
    assert "5 rows, first" in entry.getMessage() and "a.jsonl:1" in entry.getMessage()


def test_table_is_aligned_counted_and_shortened():
    many = [Problem(f"f:{n}", "image", "x" * n, "y") for n in (1, 2, 3)]
    lines = problem_table([*many, Problem("f:3", "a", "line\nbreak", "z", True)], shown=2).splitlines()
    assert lines[0] == "line  field  found  expected"
    assert lines[2:5] == [
        "f:1   image  x      y",
        "f:2   image  xx     y",
        "... and 2 more; vlm-grpo check lists all of them",
    ]
    assert lines[6:] == [
        "3 problems and 1 warning at 3 places",
        "       3  image: expected y",
        "       1  a: expected z",
    ]


def test_table_shows_control_characters_and_joins_kinds():
    found = [Problem("f:1", f"turns[{n}]", "a\0b\x1b[31m", "text") for n in (1, 3)]
    lines = problem_table(found).splitlines()
    assert r"a\x00b\x1b[31m" in lines[2]
    assert lines[-1] == "       2  turns[]: expected text"


def test_unknown_task_names_the_nearest(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(KeyError, match="unknown task 'countin'; did you mean 'counting'"):
        load_dataset(path, task="countin")


def peak(path: str, folder: Path) -> int:
    """The most bytes that opening a file takes at a time."""
    tracemalloc.start()
    load_dataset(path, image_folders=str(folder))
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    images = write_images(tmp_path)

    def opened(count: int) -> int:
        rows = [{"image": f"{n % 3}.png", "conversations": turns("<image>" + "x" * 2000, str(n))} for n in range(count)]
        return peak(write_jsonl(tmp_path / f"{count}.jsonl", rows), images)

    opened(10)  # imports
    assert opened(8000) - opened(2000) < 6000 * 100  # bytes a row; the text alone is 2000


def test_embedded_images_are_not_held_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm_grpo.data.validation.CHUNK_BYTES", 200_000)
    image = base64.b64encode(saved(noise().resize((200, 200)), "BMP")).decode()  # 120 kB, of which two make a chunk
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": image, "conversations": turns("<image>q", "a")}] * 100)
    assert len(load_dataset(path)) == 100
    assert peak(path, tmp_path) < 3_000_000
