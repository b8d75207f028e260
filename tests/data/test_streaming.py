"""Streams give the rows that map-style data sets give, one at a time, and training from them can be resumed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from trl.trainer.utils import RepeatSampler, repeat_iterable_dataset

from tests.data.files import png, turns, write_images, write_jsonl
from vlm_grpo.data import DataError, load_dataset
from vlm_grpo.data.dataset import iterable_dataset
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.trainers import sampler
from vlm_grpo.trainers.sampler import infinite


def image_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": n, "image": f"{n % 3}.png", "conversations": turns("<image>q" + "!" * n, str(n)), "hint": n}
        for n in range(first, first + count)
    ]


def numbered(count: int) -> IterableDataset:
    return iterable_dataset(lambda: iter([{"n": number} for number in range(count)]))


def both(source: Any, **options: Any) -> tuple[list[dict], list[dict]]:
    """The rows of a stream and of the map-style data set."""
    stream = load_dataset(source, streaming=True, **options)
    assert isinstance(stream, IterableDataset)
    return list(stream), list(load_dataset(source, **options))


def test_rows_are_those_of_a_data_set_that_is_opened(tmp_path: Path):
    images = str(write_images(tmp_path))
    lines = ["\ufeff" + json.dumps(image_rows(1)[0]), "", *image_rows(2, 1), "   ", {"problem": "q", "answer": "a"}]
    sources = [write_jsonl(tmp_path / "a.jsonl", lines), write_jsonl(tmp_path / "b.json", image_rows(2))]
    options = {"image_folders": images, "reward_method": "exact:text", "task": "counting"}
    stream, opened = both(":".join(sources), **options)
    absent = [{name: value for name, value in row.items() if value is not None} for row in opened]
    assert stream == absent
    assert [row["where"].removeprefix(f"{tmp_path}/") for row in stream] == [
        "a.jsonl:1",
        "a.jsonl:3",
        "a.jsonl:4",
        "a.jsonl:6",
        "b.json:1",
        "b.json:2",
    ]
    assert [row["record"].method for row in stream] == ["exact"] * 4 + ["text"] * 2
    assert stream[3]["id"] == 3  # its number in the file


def test_csv_comes_row_by_row(tmp_path: Path):
    (tmp_path / "a.csv").write_text('problem,answer\n"two\nlines",1\nq,2\n')
    stream, opened = both(str(tmp_path / "a.csv"))
    assert stream == opened and [row["where"][-1] for row in stream] == ["3", "4"]


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk", "dataset", "stream"])
def test_hub_data_come_undecoded(kind: str, tmp_path: Path):
    features = Features(
        {"problem": Value("string"), "answer": ClassLabel(names=["no", "yes"]), "image": ImageFeature()}
    )
    rows = {"problem": ["a", "b"], "answer": [1, 0], "image": [{"bytes": png(), "path": None}] * 2}
    data, source = Dataset.from_dict(rows, features=features), str(tmp_path / "data")
    if kind == "parquet":
        source += ".parquet"
        data.to_parquet(source)
    elif kind == "save_to_disk":
        data.save_to_disk(source)
    else:
        source = data if kind == "dataset" else data.to_iterable_dataset()
    stream = list(load_dataset(source, streaming=True))
    assert [(row["answer"], row["images"][0].source) for row in stream] == [("yes", png()), ("no", png())]
    assert stream[1]["where"].endswith("[1]")
    assert kind == "stream" or stream == list(load_dataset(source))


def test_opening_reads_one_row_of_each_file_and_reading_no_more_than_asked(tmp_path: Path, monkeypatch: Any):
    from vlm_grpo.data.readers import streaming as module

    parsed, parse = [], module.parse_line
    monkeypatch.setattr(module, "parse_line", lambda line, where: parsed.append(where) or parse(line, where))
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", image_rows(50)) for name in "ab"]
    stream = load_dataset(paths, image_folders=str(write_images(tmp_path)), streaming=True)
    assert set(parsed) == {f"{path}:1" for path in paths}
    parsed.clear()
    assert [row["id"] for row in islice(stream, 3)] == [0, 1, 2]
    assert parsed == [f"{paths[0]}:{line}" for line in (1, 2, 3)]
    assert [row["id"] for row in stream] == [*range(50), *range(50)]  # a pass begins anew


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    def peak(count: int) -> int:
        rows = [{"conversations": turns("x" * 2000, str(n))} for n in range(count)]
        path = write_jsonl(tmp_path / f"{count}.jsonl", rows)
        tracemalloc.start()
        assert sum(1 for _ in load_dataset(path, streaming=True)) == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(3000)  # imports, and what Python keeps to make small objects again
    assert peak(8000) - peak(3000) < 5000 * 4  # a row has more than 2000 bytes, its offset would have 8


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ("{", r"a\.jsonl:3 +line"),
        ({"problem": "q"}, r"a\.jsonl:3 +answer +missing"),
        ({"problem": "q", "answer": "a", "image": "9.png"}, r"a\.jsonl:3 +image .*9\.png: no such file"),
        ({"problem": "q", "answer": "a", "video": "9.mp4"}, r"a\.jsonl:3 +video .*9\.mp4: no such file"),
    ],
)
def test_a_bad_row_is_named_when_it_is_reached(bad: Any, found: str, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [*image_rows(1), "", bad])
    rows = iter(load_dataset(path, image_folders=str(write_images(tmp_path)), streaming=True))
    assert next(rows)["id"] == 0
    with pytest.raises(DataError, match=found):
        next(rows)


def test_without_check_images_are_not_looked_at(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "q", "answer": "a", "image": "9.png"}])
    options = {"image_folders": str(tmp_path), "streaming": True}
    assert len(list(load_dataset(path, check=False, **options))) == 1
    with pytest.raises(DataError, match="no such file"):
        load_dataset(path, **options)


def test_what_is_wrong_with_files_is_told_at_once(tmp_path: Path):
    good = write_jsonl(tmp_path / "good.jsonl", [{"problem": "q", "answer": "a"}])
    (tmp_path / "array.json").write_text('[{"problem": "q"}]')
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    names = ("none.jsonl", "array.json", "empty.jsonl", "none.csv", "none.parquet", "broken.parquet")
    wrong_key = write_jsonl(tmp_path / "key.jsonl", [{"ask": "q"}])
    with pytest.raises(DataError) as caught:
        load_dataset([good, *(str(tmp_path / name) for name in names), wrong_key], streaming=True)
    said = str(caught.value)
    assert all(name in said for name in (*names, "key.jsonl:1")) and "good.jsonl" not in said
    assert "arrays cannot be streamed" in said
    with pytest.raises(DataError, match=r"--mixture .*the number of rows is unknown"):
        load_dataset([good, good], mixture="1:1", streaming=True)
    with pytest.raises(TypeError, match="expected paths, a data set's name or a Dataset or IterableDataset, got int"):
        load_dataset(3, streaming=True)


def test_a_warning_comes_once_for_each_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"id": n, "image": "0.png", "conversations": turns("q", "a")} for n in range(9)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    stream = load_dataset(path, image_folders=str(write_images(tmp_path)), streaming=True)
    for _ in range(2):
        assert len(list(stream)) == 9
    (entry,) = caplog.records
    assert "a.jsonl:1" in entry.getMessage() and "a marker for every image" in entry.getMessage()


def test_shuffling_and_repeating_leave_objects_alone(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [*image_rows(6), {"id": 6, "problem": "q", "answer": ["x", 1]}])
    stream = infinite(load_dataset(path, image_folders=str(write_images(tmp_path)), streaming=True), seed=1)
    rows = list(islice(repeat_iterable_dataset(stream, mini_repeat_count=2, batch_size=7), 14))
    assert sorted(row["id"] for row in rows) == sorted([*range(7)] * 2)
    assert all(type(row["record"]) is Record and type(ref) is ImageRef for row in rows for ref in row["images"])
    assert next(row for row in rows if row["id"] == 6)["answer"] == ["x", 1]


def test_endless_passes_have_every_row_once_in_an_order_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler, "SHUFFLE_BUFFER", 4)

    def passes(seed: int | None) -> list[list[int]]:
        numbers = [row["n"] for row in islice(infinite(numbered(10), seed), 30)]
        return [numbers[:10], numbers[10:20], numbers[20:]]

    assert passes(None) == [list(range(10))] * 3
    assert passes(0) == passes(0) != passes(1)
    first, second, third = passes(0)
    assert first != second != third
    assert sorted(first) == sorted(second) == sorted(third) == list(range(10))
    with pytest.raises(ValueError, match="the stream has no rows"):
        next(iter(infinite(numbered(0), None)))


@pytest.mark.parametrize("source", ["ours", "shards"])
def test_two_processes_get_their_parts_of_the_same_groups(source: str):
    """As TRL's sampler deals them out: here 3 prompts in 2 slices, 4 times each, 6 rows a process.

    Of a data set in two shards accelerate would give each process one: both would train whole groups of their own
    prompts, each rollout's half of them, and every one of them twice.
    """
    from accelerate.data_loader import prepare_data_loader

    def shards(parts: list[int]) -> Iterator[dict[str, int]]:
        yield from ({"n": 6 * part + number} for part in parts for number in range(6))

    given = numbered(12) if source == "ours" else IterableDataset.from_generator(shards, gen_kwargs={"parts": [0, 1]})
    expected = list(RepeatSampler(range(12), 4, batch_size=3, repeat_count=2, shuffle=False))

    def dealt(dataset: IterableDataset) -> list[list[int]]:
        """What each of two processes gets, batch after batch."""
        repeated = repeat_iterable_dataset(dataset, mini_repeat_count=4, batch_size=3, repeat_count=2)
        parts = []
        for rank in range(2):
            loader = torch.utils.data.DataLoader(repeated, batch_size=6, collate_fn=list)
            prepared = prepare_data_loader(loader, None, 2, rank, put_on_device=False, dispatch_batches=False)
            parts.append([[row["n"] for row in batch] for batch in islice(prepared, 8)])
        return [batch for pair in zip(*parts, strict=True) for batch in pair]

    assert [number for batch in dealt(infinite(given, None)) for number in batch] == expected
    if source == "shards":
        assert [number for batch in dealt(given) for number in batch] != expected
