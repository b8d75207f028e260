"""Running the tools as users do, and small files in the formats that they read."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

INSTANCES = {
    "info": {"description": "made for tests"},
    "images": [
        {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480, "license": 3},
        {"id": 25, "file_name": "COCO_train2014_000000000025.jpg", "width": 200, "height": 100, "license": 1},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 18, "bbox": [103.93, 299.99, 134.22, 177.42], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 20], "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 1, "bbox": [10, 0, 10, 20], "iscrowd": 0},
        {"id": 4, "image_id": 25, "category_id": 1, "bbox": [150.0, 50.0, 50.4, 50.0], "iscrowd": 0},
        {"id": 5, "image_id": 25, "category_id": 18, "bbox": [1, 1, 9, 9], "iscrowd": 1},
    ],
    "categories": [
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
    ],
}


def reference(number: int, ann_id: int, image_id: int, split: str, *texts: str) -> dict[str, Any]:
    """A reference with all fields that the published files have."""
    sentences = [
        {"tokens": text.split(), "raw": text.title(), "sent_id": 10 * number + place, "sent": text}
        for place, text in enumerate(texts)
    ]
    return {
        "sent_ids": [said["sent_id"] for said in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": number,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "category_id": 1,
    }


REFS = [
    reference(0, 1, 9, "train", "brown dog", "dog in front"),
    reference(1, 2, 9, "testA", "left person"),
    reference(2, 4, 25, "val", "the person", "person alone", "him"),
]


def write_refcoco(folder: Path, refs: Any = REFS, instances: Any = INSTANCES, name: str = "refs(unc).p") -> Path:
    """A folder like the published ones; returns the pickle, in the protocol that Python 2 wrote."""
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / name).write_bytes(pickle.dumps(refs, protocol=2))
    return folder / name


def changed_instances(part: str, index: int, **fields: Any) -> dict[str, Any]:
    """INSTANCES with other values in one entry."""
    instances = copy.deepcopy(INSTANCES)
    instances[part][index].update(fields)
    return instances


def run_tool(name: str, *words: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python data_tools/NAME.py WORDS`, in a process of its own."""
    command = [sys.executable, str(ROOT / "data_tools" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def read_jsonl(path: Path) -> list[Any]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
