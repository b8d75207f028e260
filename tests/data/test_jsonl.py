from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from vlm_grpo.data import DataError, load_dataset, split_paths, val_split
from vlm_grpo.records import ImageRef


def turns(question: str, answer: object) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(folder: Path, rows: list[object], name: str = "a.jsonl") -> str:
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def load(folder: Path, rows: list[object], **options: object):
    return load_dataset(write(folder, rows), image_folders=str(folder), **options)


def ids(data: Iterable[dict]) -> list:
    return [row["id"] for row in data]


def kinds(row: dict) -> list[str]:
    return [block.get("text", "<image>") for block in row["prompt"][-1]["content"]]


def test_row_holds_paths_and_every_column(tmp_path: Path):
    row = load(tmp_path, [{"id": 1, "image": "0.png", "conversations": turns("<image>How many?", "3"), "level": 2}])[0]
    assert row["images"] == [ImageRef(str(tmp_path / "0.png"), f"{tmp_path}/a.jsonl:1")]
    assert (row["id"], row["answer"], row["level"], row["task"]) == (1, "3", 2, "default")
    assert row["record"].question == "<image>How many?"


def test_markers_keep_their_place_and_missing_ones_come_first(tmp_path: Path):
    rows = [
        {"image": ["0.png", "1.png"], "conversations": turns("Is <image> like <image>?", "no")},
        {"image": ["0.png", "1.png"], "conversations": turns("Compare.", "no")},
    ]
    data = load(tmp_path, rows)
    assert kinds(data[0])[:4] == ["Is ", "<image>", " like ", "<image>"]
    assert kinds(data[1])[:2] == ["<image>", "<image>"]


def test_text_only_system_history_and_answers_of_every_type(tmp_path: Path):
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                *turns("a", "b"),
                *turns("c", "<answer>d</answer>"),
            ]
        },
        {"conversations": turns("boxes?", [[1, 2, 3, 4]])},
    ]
    data = load(tmp_path, rows)
    assert [message["role"] for message in data[0]["prompt"]] == ["system", "user", "assistant", "user"]
    assert [data[0]["answer"], data[1]["answer"]] == ["d", [[1, 2, 3, 4]]]
    assert data[0]["images"] == []


def test_bom_crlf_and_blank_lines_are_read_with_right_line_numbers(tmp_path: Path):
    line = json.dumps({"conversations": turns("a", "b")})
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}\r\n".encode())
    data = load_dataset(str(tmp_path / "a.jsonl"))
    assert [row["where"].rsplit(":", 1)[1] for row in data] == ["1", "3"]


GOOD = {"image": "0.png", "conversations": turns("<image>q", "a")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": 1', "a.jsonl:2: line: found .*, expected one JSON object"),
        ("[1]", "a.jsonl:2: line: found list, expected a JSON object"),
        ({"id": 1}, "a.jsonl:2: conversations: found None, expected a list of turns"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "a.jsonl:2: conversations"),
        ({"conversations": turns("a", "b")[::-1]}, "a.jsonl:2: conversations: found assistant user"),
        ({**GOOD, "image": 3}, "a.jsonl:2: image: found 3, expected a path or a list of paths"),
        ({**GOOD, "image": "9.png"}, "a.jsonl:2: image: found .*9.png: no such file"),
        ({**GOOD, "image": "a.jsonl"}, "a.jsonl:2: image: found .*cannot identify image file"),
        ({**GOOD, "image": "../x.png"}, "a.jsonl:2: image: found ../x.png, expected a path inside"),
        ({**GOOD, "conversations": turns("<image><image>", "a")}, "a.jsonl:2: .*2 <image> markers, expected at most 1"),
        ({**GOOD, "accu_reward_method": "exakt"}, "a.jsonl:2: accu_reward_method: found exakt, expected one of auto"),
        ({**GOOD, "video": "a.mp4"}, "a.jsonl:2: video: .*not supported"),
    ],
)
def test_bad_lines_are_named(row: object, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load(tmp_path, [GOOD, row])


def test_all_bad_lines_come_together(tmp_path: Path):
    with pytest.raises(DataError, match=r"(?s)^2 problem\(s\).*a.jsonl:1: .*a.jsonl:3: "):
        load(tmp_path, ["{", GOOD, "{"])


def test_truncated_and_empty_images_and_files(tmp_path: Path):
    path = write(tmp_path, [GOOD])
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.jsonl:1: image"):
        load_dataset(path, image_folders=str(tmp_path))
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no lines, expected one JSON object a line"):
        load_dataset(path)
    with pytest.raises(DataError, match="found nothing, expected a jsonl file"):
        load_dataset(str(tmp_path / "none.jsonl"))


def test_files_folders_and_methods_pair_up(tmp_path: Path):
    first, second = write(tmp_path, [GOOD]), write(tmp_path, [GOOD], "b.jsonl")
    data = load_dataset(f"{first}:{second}", image_folders=f"{tmp_path}:{tmp_path}", reward_method="exact:math")
    assert [row["record"].method for row in data] == ["exact", "math"]
    with pytest.raises(ValueError, match="--image_folders: 2 given for 1 data files"):
        load_dataset(first, image_folders="a:b")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("a:b", ["a", "b"]),
        ("/x/a.jsonl:/y/b.jsonl", ["/x/a.jsonl", "/y/b.jsonl"]),
        ("https://host/a.jsonl:b", ["https://host/a.jsonl", "b"]),
        ("C:/a.jsonl:D:\\b.jsonl", ["C:/a.jsonl", "D:\\b.jsonl"]),
        ("x/:/y", ["x/", "/y"]),
    ],
)
def test_split_paths(value: str, parts: list[str]):
    assert split_paths(value) == parts


def test_outside_paths_can_be_allowed(tmp_path: Path):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = write(tmp_path, [{**GOOD, "image": "../0.png"}])
    assert len(load_dataset(path, image_folders=str(folder), allow_outside=True)) == 1


def test_split_and_pickle_keep_rows(tmp_path: Path):
    data = load(tmp_path, [{**GOOD, "id": number} for number in range(10)])
    train, held_out = val_split(data, 0.2, seed=1)
    again, _ = val_split(data, 0.2, seed=1)
    assert sorted([*ids(train), *ids(held_out)]) == list(range(10))
    assert len(held_out) == 2 and ids(train) == ids(again)
    assert pickle.loads(pickle.dumps(held_out))[0]["id"] == held_out[0]["id"]
    with pytest.raises(ValueError, match="leaves one side empty"):
        val_split(data, 0.01, seed=1)
