from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.files import turns, write_images, write_jsonl
from vlm_grpo.data import load_dataset, val_split
from vlm_grpo.records import ImageRef, Record


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": n, "image": f"{n % 3}.png", "conversations": turns("<image>q", str(n)), f"extra{n % 2}": n}
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Any:
    path = write_jsonl(tmp_path / "a.jsonl", rows(10))
    more = write_jsonl(tmp_path / "b.jsonl", [{"id": "b", "conversations": turns("only text", "x")}])
    return load_dataset(f"{path}:{more}", image_folders=str(write_images(tmp_path)))


def ids(part: Any) -> list[Any]:
    return [row["id"] for row in part]


def test_row_has_everything_that_trainers_need(data: Any, tmp_path: Path):
    row = data[3]
    where = f"{tmp_path}/a.jsonl:4"
    assert row["images"] == [ImageRef(f"{tmp_path}/images/0.png", where)]
    assert isinstance(row["record"], Record)
    assert (row["id"], row["answer"], row["task"], row["where"], row["extra1"]) == (3, "3", "default", where, 3)
    (message,) = row["prompt"]
    assert message["role"] == "user"
    assert message["content"][0] == {"type": "image"}
    assert message["content"][1]["text"].startswith("q\n")


def test_table_holds_row_numbers_only(data: Any):
    assert data.data.table.column_names == ["row"]
    assert data.data.table.nbytes == 11 * 8


def test_text_only_row_of_a_second_file(data: Any):
    row = data[10]
    assert (row["id"], row["images"]) == ("b", [])
    assert [block["type"] for block in row["prompt"][0]["content"]] == ["text"]


def test_batches_fill_missing_columns_and_share_records(data: Any):
    batch = data[[0, 1, 0]]
    assert batch["extra0"] == [0, None, 0]
    assert batch["extra1"] == [None, 1, None]
    assert batch["record"][0] is batch["record"][2]
    assert [row["id"] for row in data.__getitems__([5, 10])] == [5, "b"]


def test_selecting_shuffling_and_splitting_keep_rows_whole(data: Any):
    assert ids(data.select([4, 2])) == [4, 2]
    shuffled = data.shuffle(seed=1)
    assert ids(shuffled) != ids(data)
    assert sorted(map(str, ids(shuffled))) == sorted(map(str, ids(data)))
    parts = data.train_test_split(test_size=3, seed=0)
    assert len(parts["test"]) == 3
    row = parts["test"][0]
    assert str(row["id"]) == row["answer"] or row["id"] == "b"


def test_pickled_rows_are_the_same(data: Any):
    copy = pickle.loads(pickle.dumps(data.select([7, 10])))
    assert copy[0] == data[7]
    assert ids(copy) == [7, "b"]


def test_loader_processes_make_the_same_rows(data: Any):
    from torch.utils.data import DataLoader

    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=list)
    rows = [row for batch in loader for row in batch]
    extras = {"extra0": None, "extra1": None}  # in a batch, rows have the columns of all its rows
    assert rows == [{**extras, **data[number]} for number in range(11)]


def test_val_split_is_seeded_ordered_and_complete(data: Any):
    train, held_out = val_split(data, 0.3, seed=5)
    assert len(held_out) == 3
    assert [str(i) for i in ids(train)] == sorted(map(str, ids(train)))
    assert sorted(map(str, [*ids(train), *ids(held_out)])) == sorted(map(str, ids(data)))
    again, _ = val_split(data, 0.3, seed=5)
    other, _ = val_split(data, 0.3, seed=6)
    assert ids(again) == ids(train) != ids(other)


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.99, 1.0, 3])
def test_val_split_refuses_an_empty_side(data: Any, ratio: float):
    with pytest.raises(ValueError, match="--val_split_ratio must be between 0 and 1"):
        val_split(data, ratio)


def test_nothing_is_decoded_when_rows_are_read(data: Any, monkeypatch: pytest.MonkeyPatch):
    opened = []
    monkeypatch.setattr(Image, "open", lambda *given, **options: opened.append(given))
    assert all(isinstance(ref.source, str) for row in data for ref in row["images"])
    assert opened == []


def test_columns_that_would_clash_with_the_trainer_stay_in_the_record(tmp_path: Path):
    row = {"conversations": turns("q", "a"), "completions": "c", "prompt": "p", "where": "w", "level": 1}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (loaded,) = load_dataset(path)
    assert loaded["record"].extra == {"completions": "c", "prompt": "p", "where": "w", "level": 1}
    assert set(loaded) == {"prompt", "images", "videos", "record", "id", "answer", "task", "where", "level"}
    assert loaded["where"] == f"{path}:1"


def test_rows_of_different_tasks_get_their_own_prompts(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "1", "task": t} for t in ("vqa", "counting")])
    texts = [row["prompt"][-1]["content"][0]["text"] for row in load_dataset(path)]
    assert "reasoning_steps" in texts[0] and "number" in texts[1]


def test_own_prompt_replaces_the_tasks(tmp_path: Path):
    (tmp_path / "mine.jinja").write_text("Look! {{ question }} ({{ record.extra.hint }})")
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "1", "hint": "h"}])
    (row,) = load_dataset(path, format_prompt=str(tmp_path / "mine.jinja"))
    assert row["prompt"][0]["content"] == [{"type": "text", "text": "Look! q (h)"}]
