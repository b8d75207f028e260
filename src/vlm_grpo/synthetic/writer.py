"""Write examples to train.jsonl, held_out.jsonl, images/ and toy.json; the folder is created atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import NamedTuple, TypedDict

from PIL import Image

from vlm_grpo.records import NewRow
from vlm_grpo.synthetic.example import Example, ExampleFactory
from vlm_grpo.tasks import TASKS

HELD_OUT = 5  # one in HELD_OUT examples is held out
SMALLEST = 112  # pixels; text is illegible in smaller images
TRIES = 100  # attempts to generate an example that is not in the set yet


class ToySettings(TypedDict):
    """The settings of a data set, stored in toy.json: name, rows, seed, and side of the images in pixels."""

    data: str
    rows: int
    seed: int
    side: int


class ToyFiles(NamedTuple):
    """Paths of the written data. Paths inside the jsonl files are relative to `images`."""

    train: Path
    held_out: Path
    images: Path


def write_examples(
    name: str, factory: ExampleFactory, folder: str | Path, *, rows: int, seed: int, side: int
) -> ToyFiles:
    """Generate the examples and write them; see `vlm_grpo.synthetic.write_toy`."""
    if rows < 2:
        raise ValueError(f"--rows must be at least 2 (one training and one held-out row), got {rows}")
    if side < SMALLEST:
        raise ValueError(f"--side must be at least {SMALLEST} pixels, got {side}")
    target = Path(folder)
    settings: ToySettings = {"data": name, "rows": rows, "seed": seed, "side": side}
    if not _is_there(target, settings):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            _write(partial, factory, settings)
            partial.chmod(0o755)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ToyFiles(target / "train.jsonl", target / "held_out.jsonl", target / "images")


def _is_there(target: Path, settings: ToySettings) -> bool:
    """Return whether the folder already contains this data set.

    Raises:
        ValueError: the folder has other content.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        existing = json.loads((target / "toy.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        existing = None
    if existing == settings:
        return True
    holds = "something else" if existing is None else f"toy data made with {existing}"
    raise ValueError(f"--output_dir {target} contains {holds}; choose another folder or delete it")


def _write(folder: Path, factory: ExampleFactory, settings: ToySettings) -> None:
    (folder / "images").mkdir()
    held_out = max(1, settings["rows"] // HELD_OUT)
    lines = []
    seen: set[str] = set()
    for number in range(settings["rows"]):
        example = _new(factory, settings, number, seen)
        lines.append(json.dumps(_row(example, number, folder / "images", settings["data"]), ensure_ascii=False) + "\n")
    (folder / "train.jsonl").write_text("".join(lines[held_out:]), encoding="utf-8")
    (folder / "held_out.jsonl").write_text("".join(lines[:held_out]), encoding="utf-8")
    (folder / "toy.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _new(factory: ExampleFactory, settings: ToySettings, number: int, seen: set[str]) -> Example:
    """Return an example that is not in the set yet, so that training and held-out examples never overlap."""
    for attempt in range(TRIES):
        random = Random(f"{settings['data']} {settings['seed']} {number} {attempt}")
        example = factory(random, number, settings["side"])
        key = _fingerprint(example)
        if key not in seen:
            seen.add(key)
            return example
    raise ValueError(f"--rows {settings['rows']}: the data set {settings['data']!r} has no {number + 1} different rows")


def _fingerprint(example: Example) -> str:
    """Return a digest that is equal for examples with the same question and media."""
    digest = hashlib.blake2b(example.question.encode(), digest_size=16)
    for image in (*example.images, *example.frames):
        digest.update(image.tobytes())
    digest.update(example.clip)
    return digest.hexdigest()


def _row(example: Example, number: int, folder: Path, name: str) -> NewRow:
    """Write the images of an example to the folder and return its jsonl line."""
    stem = f"{name}_{number:05d}"
    images = _save(example.images, folder, stem)
    frames = _save(example.frames, folder, f"{stem}_frame")
    row: NewRow = {"id": f"{name}-{number}"}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    if frames:
        row["video"] = frames
    elif example.clip:
        row["video"] = f"{stem}.mp4"
        (folder / row["video"]).write_bytes(example.clip)
    turns = [{"from": "human", "value": example.question}, {"from": "gpt", "value": example.answer}]
    return {**row, "conversations": turns, "task": name if name in TASKS else "default", **example.columns}


def _save(images: tuple[Image.Image, ...], folder: Path, stem: str) -> list[str]:
    """Write images as PNG; return their names."""
    names = [f"{stem}.png"] if len(images) == 1 else [f"{stem}_{number}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    return names
