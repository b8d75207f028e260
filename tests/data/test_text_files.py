from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tests.data.files import turns, write_jsonl
from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.readers.text_files import JsonlSource, csv_source, json_source

LINE = json.dumps({"conversations": turns("a", "b")}).encode()


def opened(path: Path, content: bytes) -> JsonlSource:
    path.write_bytes(content)
    return JsonlSource(path, ReaderConfig())


def wheres(source: JsonlSource) -> list[str]:
    return [source.where(index).removeprefix(source.name) for index in range(len(source))]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (LINE + b"\n" + LINE + b"\n", [":1", ":2"]),
        (LINE + b"\n" + LINE, [":1", ":2"]),
        (LINE + b"\r\n" + LINE + b"\r\n", [":1", ":2"]),
        (b"\xef\xbb\xbf" + LINE + b"\n" + LINE, [":1", ":2"]),
        (b"\n \t\r\n" + LINE + b"\n\n" + LINE + b"\n\n", [":3", ":5"]),
        (b"\xef\xbb\xbf\r\n" + LINE, [":2"]),
        (LINE + b"\n\xef\xbb\xbf" + LINE, [":1", ":2"]),
    ],
    ids=["plain", "no last newline", "crlf", "bom", "blank lines", "bom and blank", "joined files"],
)
def test_lines_are_found_and_numbered_as_in_an_editor(tmp_path: Path, content: bytes, lines: list[str]):
    source = opened(tmp_path / "a.jsonl", content)
    assert wheres(source) == lines
    assert [source.raw(index) for index in range(len(source))] == [json.loads(LINE)] * len(lines)
    assert list(source.rows()) == [json.loads(LINE)] * len(lines)


def test_escaped_pairs_are_characters(tmp_path: Path):
    source = opened(tmp_path / "a.jsonl", rb'{"q": "\ud83d\ude00"}')
    assert source.raw(0) == {"q": "\N{GRINNING FACE}"}


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path):
    source = opened(tmp_path / "a.jsonl", '{"q": "a\u2028b\u0085c"}\n{"q": 2}\n'.encode())
    assert [row["q"] for row in source.rows()] == ["a\u2028b\u0085c", 2]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"id": 1', "Expecting ',' delimiter at column 9, near"),
        (b"{'id': 1}", "Expecting property name"),
        (b"[1]", "list"),
        (b"3", "int"),
        (b'{"id": 1} {"id": 2}', "Extra data at column 11"),
        (b'{"q": "\xff\xfe"}', "0xff at byte 8, not UTF-8"),
        (rb'{"q": "a \uD83D"}', "an unpaired surrogate, '\\ud83d'"),
        (b"[" * 100_000, "recursion"),
        (b'{"id": ' + b"1" * 5000 + b"}", "integer"),
    ],
    ids=["cut off", "quotes", "list", "number", "two", "encoding", "surrogate", "deep", "huge"],
)
def test_a_bad_line_is_a_problem_and_not_an_exception(tmp_path: Path, line: bytes, found: str):
    source = opened(tmp_path / "a.jsonl", LINE + b"\n\n" + line + b"\n")
    problem = source.raw(1)
    assert isinstance(problem, Problem)
    assert problem.where == f"{tmp_path}/a.jsonl:3"
    assert found in problem.found


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(DataError, match=f"{len(content)} bytes without a row"):
        opened(tmp_path / "a.jsonl", content)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.jsonl.*no such file"):
        JsonlSource(tmp_path / "a.jsonl", ReaderConfig())
    with pytest.raises(DataError, match="a folder, not a regular file"):
        JsonlSource(tmp_path, ReaderConfig())


def test_a_pickled_source_reads_the_same(tmp_path: Path):
    source = opened(tmp_path / "a.jsonl", b"\n" + LINE)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.raw(0) == source.raw(0)
    assert copy.where(0) == source.where(0)


def test_json_file_is_an_array_or_lines(tmp_path: Path):
    rows = [{"q": 1, "a": "x"}, {"q": "two", "a": [1]}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    source = json_source(tmp_path / "a.json", ReaderConfig())
    assert list(source.rows()) == rows
    assert source.where(1) == f"{tmp_path}/a.json[1]"
    lines = json_source(write_jsonl(tmp_path / "b.json", rows), ReaderConfig())
    assert list(lines.rows()) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "an empty array"),
        (b'[{"a": 1},\n {"a": }]', "a.json:2"),
        (b'[{"a": 1},\n {"a": "\xff"}]', "a.json:2 .*not UTF-8"),
        (b"", "without a row"),
    ],
)
def test_a_bad_json_file_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        json_source(tmp_path / "a.json", ReaderConfig())


def test_json_array_with_an_item_that_is_no_object(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"a": 1}, 2]')
    problem = list(json_source(tmp_path / "a.json", ReaderConfig()).rows())[1]
    assert (problem.where, problem.found) == (f"{tmp_path}/a.json[1]", "int")


def test_csv_cells_stay_text_but_lists(tmp_path: Path):
    text = 'question,answer,options,image\n"How\nmany?",007,"[""a"", ""b""]",\nNA?,null,[x,a.png\n'
    (tmp_path / "a.csv").write_text(text, encoding="utf-8-sig")
    source = csv_source(tmp_path / "a.csv", ReaderConfig())
    assert list(source.rows()) == [
        {"question": "How\nmany?", "answer": "007", "options": ["a", "b"], "image": None},
        {"question": "NA?", "answer": "null", "options": "[x", "image": "a.png"},
    ]
    assert source.where(1) == f"{tmp_path}/a.csv:4"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"question,answer\n", "no rows"), (b"q,a\nx,\xff\n", "UTF-8"), (b'q,a\nx,"y\n', "unexpected end of data")],
)
def test_a_bad_csv_file_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        csv_source(tmp_path / "a.csv", ReaderConfig())


def test_a_csv_row_with_too_many_cells_is_named(tmp_path: Path):
    (tmp_path / "a.csv").write_text("q,a\n1,2\n1,2,3\n")
    problem = csv_source(tmp_path / "a.csv", ReaderConfig()).raw(1)
    assert (problem.where, problem.found) == (f"{tmp_path}/a.csv:3", "1 cells more than the header")


@pytest.mark.parametrize("inner", [b'{"q": 1, "q": 2}', b'{"q": {"a": 1, "b": [{"x": 1, "y": 2, "x": 3}]}}'])
def test_a_repeated_key_is_refused_with_its_line(inner: bytes, tmp_path: Path):
    """Of the two values one would be lost without a word."""
    source = opened(tmp_path / "a.jsonl", b'{"q": 1}\n' + inner + b"\n")
    problem = source.raw(1)
    assert (problem.where[-2:], problem.expected) == (":2", "every key once")
    assert "occurs 2 times" in problem.found
    (tmp_path / "a.json").write_bytes(b"[" + inner + b"]")
    with pytest.raises(DataError, match=r"occurs 2 times"):
        json_source(tmp_path / "a.json", ReaderConfig())
    (tmp_path / "a.csv").write_text('q,a\n1,"' + inner.decode().replace('"', '""') + '"\n')
    assert "occurs 2 times" in csv_source(tmp_path / "a.csv", ReaderConfig()).raw(0).found
