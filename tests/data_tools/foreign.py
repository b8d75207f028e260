"""Rows and files in the forms of other systems."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.files import COLORS, png, turns, write_jsonl
from tests.data_tools.files import run_tool

JSONL_ROWS: list[dict[str, Any]] = [
    {"id": 1, "image": "0.png", "conversations": turns("<image>How many?", "3"), "accu_reward_method": "numeric"},
    {"id": "b", "image": ["1.png"], "conversations": turns("<image>How many?", 3), "seen": None},
    {"image": ["0.png", "2.png"], "conversations": turns("<image><image>Same?", "no"), "score": 1, "tags": ["a", "b"]},
    {
        "images": ["2.png"],
        "conversations": turns("<image>the dog", {"bbox_2d": [1, 2, 3.5, 4]}),
        "task": "rec",
        "box_space": "original",
        "score": 0.5,
    },
    {"conversations": turns("2 + 2?", '["4"]'), "meta": {"a": 1}},
    {"conversations": turns("2 + 3?", "[4,5]"), "meta": {"b": [1, "x", None]}, "big": 2**70},
]
LONG = {
    "image": "1.png",
    "conversations": [
        {"from": "system", "value": "Be short."},
        *turns("<image>A?", "yes"),
        *turns("B?", [{"bbox_2d": [0, 0, 5, 5], "label": "cup"}, {"bbox_2d": [1, 1, 2, 2], "label": "cup"}]),
    ],
    "box_space": "thousand",
}
SWIFT: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": "<image>A?"}, {"role": "assistant", "content": "yes"}],
        "images": ["0.png"],
    },
    {"messages": [{"role": "user", "content": "A?"}], "images": [], "solution": "4", "loss_scale": 0.5},
    {
        "messages": [
            {"role": "system", "content": "You find things."},
            {"role": "user", "content": "<image>Find the <ref-object>"},
            {"role": "assistant", "content": "<bbox>", "loss": True},
        ],
        "images": ["1.png"],
        "objects": {"ref": ["sheep"], "bbox": [[90.9, 160.8, 135, 212.8]]},
    },
    {
        "messages": [
            {"role": "user", "content": "<image><image>Find <ref-object> and <ref-object>"},
            {"role": "assistant", "content": "<ref-object><bbox>, <ref-object><bbox>"},
        ],
        "images": ["1.png", "2.png"],
        "objects": {
            "ref": ["a", "b", "a", "b"],
            "bbox": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]],
            "bbox_type": "norm1",
            "image_id": [1, 1],
        },
    },
]


def write(path: Path, rows: list[Any], config: str) -> Path:
    if config == "llava":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return path


def image(color: str, path: str | None = None) -> dict[str, Any]:
    return {"bytes": png(color), "path": path}


def write_parquet(path: Path, images: list[Any] | None = None) -> list[dict[str, Any]]:
    """A file as EasyR1 reads it, with further columns, null among them, and several row groups."""
    rows = [
        {
            "problem": f"<image>What is {n}?",
            "answer": str(n) if n % 2 else f'{{"bbox_2d": [{n}, 2, 3, 4]}}',
            "images": images or [image(COLORS[n % 3], None if n % 3 else f"train/{n}.png")] * (1 + n // 4),
            "ability": "math" if n else None,
            "extra_info": {"index": n, "split": None},
        }
        for n in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return rows


def without_null(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def convert(source: str, target: str, path: Path, output: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    return run_tool("convert", "--from", source, "--to", target, "--input", path, "--output", output, *words)
