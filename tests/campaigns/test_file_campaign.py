"""Broken data and images through check, preview and train: each is used, or refused in words, by all three alike."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.outcome import outcome, training
from tests.data.files import turns
from tests.support.training import picture
from vlm_grpo.cli import main, train

FILES = 100
Row = dict[str, Any]


def row(number: int) -> Row:
    return {"id": number, "image": f"{number}.png", "conversations": turns("<image>Which?", str(number))}


def add_turns(*values: Any) -> Callable[[Row], Row]:
    """The row with a question and an answer of these values."""
    return lambda good: {**good, "conversations": turns(*values)}


WITH = {
    "image": (None, [], ["0.png", "0.png"], 5, "../x.png", "/etc/passwd", "a.jsonl", ".", "", "\0", "x" * 5000),
    "conversations": (None, [], {}, [{"from": "gpt", "value": "a"}], [{"from": "human"}], "text", 5),
    "task": ("nope", 5, None),
    "accu_reward_method": ("nope", 5),
    **dict.fromkeys(("weights", "box_space", "options", "reference_steps", "system", "solution"), (5, "x", {"a": 1})),
    "id": ({"a": 1}, None),
    "video": ("0.png", 5),
    "environment": ("x",),
    "extra": (float("nan"),),
}
ODD_ROWS: list[Callable[[Row], Any]] = [
    *(lambda good, name=name, value=value: {**good, name: value} for name, values in WITH.items() for value in values),
    add_turns("<image><image>", "1"),
    add_turns("no image", "1"),
    add_turns("<image>", ""),
    add_turns("<image>", None),
    add_turns("<image>", {"a": [1]}),
    *(lambda good, value=value: value for value in ([1], 5, None, "x", {}, {"question": "q", "answer": "a"})),
    *(
        lambda good, value=value: {"question": "<image>q", "image": "0.png", "answer": value}
        for value in (float("inf"), ["a", "b"], True, {"a": 1}, "\ud800", None)
    ),
    lambda good: {"question": "q " * 200_000, "answer": "1"},
]


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    picture(0).save(file, kind)
    return file.getvalue()


def damaged(content: bytes, source: random.Random) -> bytes:
    """The bytes cut, with some of them changed, or with others in between."""
    place = source.randrange(len(content))
    kind = source.choice(("cut", "change", "insert"))
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + source.randbytes(30) + content[place:]
    changed = bytearray(content)
    for _ in range(source.randrange(1, 20)):
        changed[source.randrange(len(changed))] ^= source.randrange(1, 256)
    return bytes(changed)


def as_bytes(rows: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def write_case(folder: Path, source: random.Random) -> Path:
    """Four rows of which one is odd, or a file that is odd as a whole."""
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    rows: list[Any] = [row(number) for number in range(4)]
    data, kind = folder / "a.jsonl", source.choice(("image", "row", "row", "row", "bytes", "file"))
    if kind == "row":
        rows[source.randrange(4)] = source.choice(ODD_ROWS)(rows[1])
    content = as_bytes(rows)
    if kind == "image":
        (folder / "1.png").write_bytes(damaged(encoded(source.choice(("PNG", "JPEG", "GIF"))), source))
    if kind == "bytes":
        content = damaged(content, source)
    if kind == "file":
        data, content = odd_file(data, rows, source)
    data.write_bytes(content)
    return data


def odd_file(data: Path, rows: list[Any], source: random.Random) -> tuple[Path, bytes]:
    """Content of another format than the file's name says, or of none."""
    text = as_bytes(rows)
    contents = {
        "a.jsonl": (b"", b"\0" * 1000, b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), gzip.compress(text)),
        "b.jsonl": (text.replace(b"\n", b"\r\n"), json.dumps(rows).encode()),
        "a.parquet": (b"PAR1" + source.randbytes(100) + b"PAR1",),
        "a.json": (b"SQLite format 3\0" + source.randbytes(100),),
    }
    name = source.choice(sorted(contents))
    return data.with_name(name), source.choice(contents[name])


@pytest.mark.extended
def test_a_broken_file_is_used_or_refused_in_words(tiny_model: Path, tmp_path: Path):
    source, faults, used = random.Random(0), [], 0
    for number in range(FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = write_case(folder, source)
        words = [f"--data_file_paths={data}", f"--image_folders={folder}"]
        ends = {"check": outcome(main.main, ["check", "--decode", *words])}
        ends["preview"] = outcome(main.main, ["preview", *words])
        ends["train"] = outcome(train.main, training(tiny_model, data, folder, folder / "out", max_steps=4))
        used += ends["train"].status == 0
        agree = (ends["check"].status == 0) == (ends["train"].status == 0)
        if not agree or not all(end.is_named for end in ends.values()):
            faults.append(
                (number, {name: (end.status, end.said[-200:], end.trace[-400:]) for name, end in ends.items()})
            )
    assert not faults
    assert 5 < used < FILES - 50
