"""Seconds and memory that a large jsonl file takes: opened with every check before training, and streamed.

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
LIMIT = 64 * 2**20  # bytes that a process may take while it streams, or half of the file where that is less
EARLY = 1000  # rows after which memory is looked at for the first time
SEED = 5


class Opening(NamedTuple):
    """Cost of one case: seconds to open, increase of peak memory in MiB, random rows per second afterwards."""

    seconds: float
    grown: float
    made: float


class Streaming(NamedTuple):
    """What one pass cost: the limit in MiB, seconds to the first row and to the last, growth of the peak in MiB."""

    limit: float
    first: float
    seconds: float
    grown_early: float
    grown: float


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


STREAMED = ["conversations, text only", EMBEDDED]


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


def stream_case(path: Path) -> Streaming:
    """Make every row of the file once, in a process that cannot have the memory to hold the file."""
    from vlm_grpo.data import load_dataset

    warm_up = path.with_name("one.jsonl")
    with path.open("rb") as file:
        warm_up.write_bytes(file.readline())
    options = {"image_folders": str(path.parent), "streaming": True}
    list(load_dataset(str(warm_up), **options))
    in_use, limit = address_space(), min(LIMIT, path.stat().st_size // 2)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    before, started = peak_memory(), time.perf_counter()
    rows = iter(load_dataset(str(path), **options))
    next(rows)
    opened, count, early = time.perf_counter() - started, 1, 0.0
    for count, _ in enumerate(rows, 2):
        if count == EARLY:
            early = peak_memory() - before
    seconds = time.perf_counter() - started
    grown = peak_memory() - before
    return Streaming(limit / 2**20, opened, seconds, early or grown, grown)


def address_space() -> int:
    """Bytes of virtual memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def peak_memory() -> float:
    """The most memory that this process ever had in use, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case: Callable[[Path], Any], path: Path, repeats: int) -> list[float]:
    """The medians of a case that runs in a fresh process each time."""
    context = multiprocessing.get_context("spawn")
    results = []
    for _ in range(repeats):
        with context.Pool(1) as pool:
            results.append(pool.apply(case, (path,)))
    return [statistics.median(part) for part in zip(*results, strict=True)]


def print_opening(case: str, path: Path, rows: int, repeats: int) -> None:
    """A line of the first table."""
    seconds, grown, made = measure(open_case, path, repeats)
    size = path.stat().st_size / 2**20
    rate = rows / seconds
    print(f"{case:<34} {size:>5.0f} {seconds:>8.1f} {rate:>9,.0f} {grown:>10.0f} {made:>11,.0f}", flush=True)


def print_streaming(case: str, path: Path, rows: int, repeats: int) -> None:
    """A line of the second table."""
    limit, first, seconds, early, grown = measure(stream_case, path, repeats)
    size, rate = path.stat().st_size / 2**20, rows / seconds
    print(
        f"{case:<34} {size:>5.0f} {limit:>10.0f} {first:>10.3f} {rate:>10,.0f} {early:>10.1f} {grown:>10.1f}",
        flush=True,
    )


def main() -> None:
    """Print a line for each kind of rows, opened and then streamed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only_streaming", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(IMAGES):
            Image.effect_noise((320, 240), 50).convert("RGB").save(folder / f"{number}.png")
        if not options.only_streaming:
            print(f"target: {TARGET} s for 1,000,000 rows")
            print(f"{'rows':<34} {'MiB':>5} {'seconds':>8} {'rows/s':>9} {'peak + MiB':>10} {'random/s':>11}")
            run_cases(folder, list(CASES), options, print_opening)
        heads = ("limit MiB", "first, s", "rows/s", f"{EARLY} + MiB", "end + MiB")
        print(f"{'streamed':<34} {'MiB':>5} " + " ".join(f"{head:>10}" for head in heads))
        run_cases(folder, STREAMED, options, print_streaming)


def run_cases(
    folder: Path, cases: list[str], options: argparse.Namespace, show: Callable[[str, Path, int, int], None]
) -> None:
    """Write the file of each case, and print its line."""
    for case in cases:
        rows = options.rows // FEWER if case == EMBEDDED else options.rows
        show(case, write_case(folder, CASES[case], rows), rows, options.repeats)


if __name__ == "__main__":
    main()
