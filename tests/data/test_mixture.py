from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.files import turns, write_jsonl
from vlm_grpo.data import DataError, load_dataset
from vlm_grpo.data.mixture import mixture_counts, mixture_numbers, read_shares


def shares(text: str) -> list[Fraction]:
    found, problems = read_shares(text, text.count(":") + 1)
    assert problems == []
    return found


def files(folder: Path, *sizes: int) -> str:
    """Files a.jsonl, b.jsonl and so on; a record's id says its file and row, as in `b3`."""
    return ":".join(
        write_jsonl(
            folder / f"{name}.jsonl", [{"id": f"{name}{n}", "conversations": turns("q", "a")} for n in range(size)]
        )
        for name, size in zip("abc", sizes, strict=False)
    )


def ids(data: Any) -> list[str]:
    return data[:]["id"] if len(data) else []


@pytest.mark.parametrize(
    ("sizes", "text", "counts"),
    [
        ((10, 100), "0.7:0.3", [10, 4]),  # 10 / 0.7 = 14.3 rows: 9.8 and 4.2 are due
        ((100, 10), "0.7:0.3", [23, 10]),  # 10 / 0.3 = 33.3 rows: 23.1 and 9.9
        ((7, 3), "0.7:0.3", [7, 3]),  # every row; 7 / 0.7 is 10.000000000000002 or less in floats
        ((70, 30), "70:30", [70, 30]),
        ((50, 8), "1:1", [8, 8]),
        ((100, 100, 5), "2:2:1", [10, 10, 5]),
        ((100, 100, 4), "0.5:0.3:0.2", [10, 6, 4]),
        ((5,), "3", [5]),
    ],
)
def test_counts_follow_the_file_that_runs_out_first(sizes: tuple[int, ...], text: str, counts: list[int]):
    assert mixture_counts(sizes, shares(text)) == counts


def test_counts_never_exceed_a_file_and_are_within_one_of_the_shares():
    source = np.random.default_rng(0)
    for _ in range(500):
        sizes = source.integers(1, 200, 3).tolist()
        parts = [Fraction(int(part)) for part in source.integers(1, 20, 3)]
        counts = mixture_counts(sizes, parts)
        length = sum(counts)
        assert all(count <= size for count, size in zip(counts, sizes, strict=True))
        assert all(abs(c - length * part / sum(parts)) < 1 for c, part in zip(counts, parts, strict=True))
        assert any((length + 1) * part > size * sum(parts) for size, part in zip(sizes, parts, strict=True))


def test_files_alternate_and_keep_their_order():
    # middles of the thirds of a: 1/6 3/6 5/6; of b's only row: 1/2, after a's
    assert mixture_numbers([3, 1], shares("3:1")).tolist() == [0, 1, 3, 2]
    assert mixture_numbers([2, 4], shares("1:2")).tolist() == [2, 0, 3, 4, 1, 5]


def test_every_stretch_has_the_shares():
    numbers = mixture_numbers([5000, 3000], shares("0.9:0.1"), seed=3)
    assert len(numbers) == len(set(numbers.tolist())) == 5555  # 5000 / 0.9
    first = np.cumsum(numbers < 5000)
    due = 5000 / 5555 * np.arange(1, 5556)
    assert np.abs(first - due).max() <= 1
    assert np.all(np.diff(numbers[numbers >= 5000]) > 0)


def test_the_seed_chooses_the_rows():
    first, again, other = (mixture_numbers([10, 1000], shares("1:1"), seed).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert [n for n in first if n < 10] == [n for n in other if n < 10] == list(range(10))


def test_loading_gives_the_shares_lazily(tmp_path: Path):
    data = load_dataset(files(tmp_path, 40, 10), mixture="0.5:0.5", mixture_seed=1)
    names = ids(data)
    assert len(data) == len(set(names)) == 20
    assert [name for name in names if name[0] == "b"] == [f"b{n}" for n in range(10)]
    assert [name[0] for name in names] == ["a", "b"] * 10
    assert data.with_format(None).column_names == ["row"]
    assert ids(load_dataset(files(tmp_path, 40, 10), mixture=[0.5, 0.5], mixture_seed=1)) == names
    assert ids(load_dataset(files(tmp_path, 40, 10), mixture="1:1", mixture_seed=2)) != names
    assert data[1]["where"] == f"{tmp_path}/b.jsonl:1"


def test_without_a_mixture_all_rows_come_in_order(tmp_path: Path):
    assert ids(load_dataset(files(tmp_path, 2, 1))) == ["a0", "a1", "b0"]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("0.7", r"--mixture +number +1 for 2 data files +2, one for each file"),
        ("0.7:0.2:0.1", r"--mixture +number +3 for 2 data files"),
        ("0.7:much", r"--mixture +share +'much' +a number above 0"),
        ("0.7:", r"--mixture +share +'' +a number above 0"),
        ("1:0", r"--mixture +share +'0' +a number above 0; remove"),
        ("1:-1", r"--mixture +share +'-1'"),
        ("nan:1", r"--mixture +share +'nan'"),
        ("1:inf", r"--mixture +share +'inf'"),
        ("1:1e999999999", r"--mixture +share +'1e999999999'"),
        ([1.0, 0.0], r"--mixture +share +'0.0'"),
        ("1000:1", r"--mixture .*b\.jsonl +none of its 5 rows would be used: .*a\.jsonl has only 3"),
    ],
)
def test_shares_that_do_not_fit_are_named(tmp_path: Path, mixture: Any, message: str):
    with pytest.raises(DataError, match=message):
        load_dataset(files(tmp_path, 3, 5), mixture=mixture)


def test_a_missing_file_is_named_and_not_its_share(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.jsonl.*no such file") as caught:
        load_dataset(f"{files(tmp_path, 3)}:{tmp_path}/none.jsonl", mixture="1:1")
    assert len(caught.value.problems) == 1


def test_val_split_takes_from_the_mixture(tmp_path: Path):
    from vlm_grpo.data import val_split

    data = load_dataset(files(tmp_path, 40, 10), mixture="1:1")
    train, held_out = val_split(data, 0.2)
    assert (len(train), len(held_out)) == (16, 4)
    assert sorted(ids(train) + ids(held_out)) == sorted(ids(data))
