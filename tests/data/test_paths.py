from __future__ import annotations

import pytest

from vlm_grpo.data.paths import in_folder, leaves_folder, match_files, split_paths


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (None, []),
        ("a", ["a"]),
        ("a.jsonl:b.jsonl", ["a.jsonl", "b.jsonl"]),
        ("x:y", ["x", "y"]),
        ("x/:y/", ["x/", "y/"]),
        ("x/:", ["x/", ""]),
        (":x/", ["", "x/"]),
        ("/x/a.jsonl:/y/b.jsonl", ["/x/a.jsonl", "/y/b.jsonl"]),
        ("https://host/x:/y", ["https://host/x", "/y"]),
        ("http://host:8000/x:y", ["http://host:8000/x", "y"]),
        ("y:https://host:80/x", ["y", "https://host:80/x"]),
        ("C:/a:D:\\b", ["C:/a", "D:\\b"]),
        (["a:b", "c"], ["a:b", "c"]),
    ],
)
def test_split_paths_splits_at_lists_only(value: str | list[str] | None, parts: list[str]):
    assert split_paths(value) == parts


@pytest.mark.parametrize(
    ("entries", "files", "expected"),
    [
        ([], 2, ["", ""]),
        (["a"], 2, ["a", "a"]),
        (["a", "b"], 2, ["a", "b"]),
        (["a", "b"], 3, None),
        (["a", "b"], 1, None),
    ],
)
def test_one_for_each_pairs_or_refuses(entries: list[str], files: int, expected: list[str] | None):
    assert match_files(entries, files) == expected


@pytest.mark.parametrize(
    ("folder", "path", "leaves"),
    [
        ("/d/images", "a/b.png", False),
        ("/d/images", "../b.png", True),
        ("/d/images", "a/../../b.png", True),
        ("/d/images", "a/../b.png", False),
        ("/d/images", "../images/b.png", False),
        ("/d/images", "../images2/b.png", True),
        ("/d/images", "..b.png", False),
        ("/d/images", "/etc/b.png", True),
        ("/d/images", "/d/images/b.png", False),
        ("/d/images", "https://host/../b.png", False),
        ("https://host/x", "../b.png", True),
        ("https://host/x", "b..c.png", False),
        ("", "/any/where.png", False),
        ("", "a.png", False),
        ("", "../a.png", True),
    ],
)
def test_leaves_folder_normalises_without_touching_files(folder: str, path: str, leaves: bool):
    assert leaves_folder(folder, path) is leaves


def test_in_folder_joins_paths_and_urls():
    assert in_folder("x", "a/./b.png") == "x/a/b.png"
    assert in_folder("", "/a.png") == "/a.png"
    assert in_folder("https://host/x/", "a.png") == "https://host/x/a.png"
    assert in_folder("x", "https://host/a.png") == "https://host/a.png"
