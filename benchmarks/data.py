"""Seconds and memory that opening a large jsonl file takes, with every check that runs before training.

python benchmarks/data.py [--rows 1000000] [--repeats 1]
Each case runs in a process of its own, so that one cannot use what another has loaded.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

WORDS = ["red", "blue", "green", "dog", "cat", "left", "right", "tall", "small", "table", "chair", "window", "street"]
TARGET = 60  # seconds for 1,000,000 rows
IMAGES = 300
EMBEDDED = "images of 1 MiB in the rows"
FEWER = 500  # times, because of their size
READ = 1000  # rows that are made after opening, anywhere in the file
SEED = 5


class Opening(NamedTuple):
    """What one case cost: seconds to open, growth of the peak memory in MiB, rows made a second afterwards."""

    seconds: float
    grown: float
    made: float


def text_row(number: int, source: random.Random) -> dict[str, Any]:
    """A question about nothing to see."""
    question, answer = " ".join(source.choices(WORDS, k=20)), " ".join(source.choices(WORDS, k=3))
    return {"id": number, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def column_row(number: int, source: random.Random) -> dict[str, Any]:
    """The same in columns."""
    return {"id": number, "problem": " ".join(source.choices(WORDS, k=20)), "solution": source.choice(WORDS)}


def image_row(number: int, source: random.Random) -> dict[str, Any]:
    """A question about one of the images, all of which many rows share."""
    row = text_row(number, source)
    row["conversations"][0]["value"] = "<image>" + row["conversations"][0]["value"]
    return {**row, "image": f"{number % IMAGES}.png"}


def warned_row(number: int, source: random.Random) -> dict[str, Any]:
    """The same without a marker for the image, which is worth a warning."""
    return {**text_row(number, source), "image": f"{number % IMAGES}.png"}


def embedded_row(number: int, source: random.Random) -> dict[str, Any]:
    """A question about an image of 1 MiB that is part of the row."""
    pixels = source.randbytes(3 * 512 * 700)
    file = io.BytesIO()
    Image.frombytes("RGB", (700, 512), pixels).save(file, "PNG", compress_level=0)
    return {**text_row(number, source), "image": base64.b64encode(file.getvalue()).decode()}


CASES: dict[str, Callable[[int, random.Random], dict[str, Any]]] = {
    "conversations, text only": text_row,
    "columns, text only": column_row,
    f"conversations, {IMAGES} shared images": image_row,
    "the same, a warning for each row": warned_row,
    EMBEDDED: embedded_row,
}


def write_case(folder: Path, make: Callable[[int, random.Random], dict[str, Any]], rows: int) -> Path:
    """The jsonl file of a case, next to the images."""
    source = random.Random(SEED)
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(make(number, source)) + "\n" for number in range(rows))
    return path


def open_case(path: Path) -> Opening:
    """Open the file as training does, then make some rows of it."""
    from vlm_grpo.data import load_dataset

    warm_up = path.with_name("one.jsonl")  # imports are no part of what grows with the data
    with path.open("rb") as file:
        warm_up.write_bytes(file.readline())
    load_dataset(str(warm_up), image_folders=str(path.parent))
    before = peak_memory()
    started = time.perf_counter()
    dataset = load_dataset(str(path), image_folders=str(path.parent))
    seconds = time.perf_counter() - started
    grown = peak_memory() - before
    numbers = random.Random(SEED).choices(range(len(dataset)), k=READ)
    started = time.perf_counter()
    for number in numbers:
        _ = dataset[number]
    return Opening(seconds, grown, READ / (time.perf_counter() - started))


def peak_memory() -> float:
    """The most memory that this process ever had in use, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, repeats: int) -> list[Opening]:
    """The case in a fresh process each time."""
    context = multiprocessing.get_context("spawn")
    openings = []
    for _ in range(repeats):
        with context.Pool(1) as pool:
            openings.append(pool.apply(open_case, (path,)))
    return openings


def main() -> None:
    """Print a line for each kind of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    print(f"target: {TARGET} s for 1,000,000 rows")
    print(f"{'rows':<34} {'MiB':>5} {'seconds':>8} {'rows/s':>9} {'peak + MiB':>10} {'rows made/s':>11}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(IMAGES):
            Image.effect_noise((320, 240), 50).convert("RGB").save(folder / f"{number}.png")
        for case, make in CASES.items():
            rows = options.rows // FEWER if case == EMBEDDED else options.rows
            path = write_case(folder, make, rows)
            openings = zip(*measure(path, options.repeats), strict=True)
            seconds, grown, made = (statistics.median(part) for part in openings)
            size = path.stat().st_size / 2**20
            rate = rows / seconds
            print(f"{case:<34} {size:>5.0f} {seconds:>8.1f} {rate:>9,.0f} {grown:>10.0f} {made:>11,.0f}", flush=True)


if __name__ == "__main__":
    main()
