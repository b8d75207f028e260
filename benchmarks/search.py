"""Seconds on a core that an index of documents takes to make, and milliseconds of a query by the clock and on a core.

python benchmarks/search.py [--documents 1000 10000 100000] [--queries 1000] [--threads 8]
Words are drawn as they are in natural text, by Zipf's law; a document has 60 to 160 of them. Queries have 2 to 10:
`usual` ones are drawn as those of documents, without the 50 most frequent; `common` ones are drawn of those 50 alone.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

from vlm_grpo.envs.retrieval.bm25 import SearchIndex, write_index

TARGET = 10  # milliseconds for a query at 100,000 documents
VOCABULARY = 200_000
COMMON = 50
SEED = 5
WEIGHTS = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))


def word(rank: int) -> str:
    """Letters for a rank, all different."""
    letters = ""
    while rank or not letters:
        rank, letter = divmod(rank, 26)
        letters += chr(ord("a") + letter)
    return letters


WORDS = [word(rank) for rank in range(VOCABULARY)]


def write_documents(path: Path, documents: int) -> None:
    """A jsonl file of documents."""
    source = random.Random(SEED)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(source.choices(WORDS, cum_weights=WEIGHTS, k=source.randint(60, 160)))
            file.write(json.dumps({"id": str(number), "title": text[:30], "text": text}) + "\n")


def usual(source: random.Random) -> str:
    """A query as people write them."""
    wanted = source.randint(2, 10)
    drawn = source.choices(range(VOCABULARY), cum_weights=WEIGHTS, k=10 * wanted)
    return " ".join([WORDS[rank] for rank in drawn if rank >= COMMON][:wanted])


def common(source: random.Random) -> str:
    """A query of words that most documents have."""
    return " ".join(source.sample(WORDS[:COMMON], source.randint(2, 10)))


def milliseconds(index: SearchIndex, queries: list[str], threads: int) -> list[list[float]]:
    """How long each query took, by the clock and of its thread on a core; both shortest first."""

    def ask(query: str) -> tuple[float, float]:
        started, own = time.perf_counter(), time.thread_time()
        index.search(query)
        return 1000 * (time.perf_counter() - started), 1000 * (time.thread_time() - own)

    ask("warm up")
    with ThreadPoolExecutor(threads) as pool:
        return [sorted(times) for times in zip(*pool.map(ask, queries), strict=True)]


CASES: dict[str, Callable[[random.Random], str]] = {"usual": usual, "common": common}


def main() -> None:
    """Print a line for each number of documents, kind of query and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    print(f"target: {TARGET} ms for a query at 100,000 documents, one at a time")
    heads = ("documents", "seconds", "MiB", "queries", "threads", "p50, ms", "p99, ms", "p50 core", "p99 core")
    print(" ".join(f"{head:>9}" for head in heads))
    for documents in options.documents:
        with tempfile.TemporaryDirectory() as name:
            source, path = Path(name) / "documents.jsonl", Path(name) / "documents.index"
            write_documents(source, documents)
            started = time.process_time()  # of this process: others on the core do not count
            write_index([str(source)], path)
            made = f"{documents:>9,} {time.process_time() - started:>9.1f} {path.stat().st_size / 2**20:>9.1f}"
            print_queries(made, SearchIndex(path), options)


def print_queries(made: str, index: SearchIndex, options: argparse.Namespace) -> None:
    """The lines of one index."""
    for kind, draw in CASES.items():
        for threads in sorted({1, options.threads}):
            source = random.Random(SEED)
            took = milliseconds(index, [draw(source) for _ in range(options.queries)], threads)
            at = [times[int(share * (len(times) - 1))] for times in took for share in (0.5, 0.99)]
            print(f"{made} {kind:>9} {threads:>9} " + " ".join(f"{value:>9.2f}" for value in at), flush=True)


if __name__ == "__main__":
    main()
