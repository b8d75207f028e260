"""Completions a second that the rewards score on one core, called as a trainer calls them.

python benchmarks/rewards.py [--completions 20000] [--repeats 5]
Completions are all different and drawn once with a fixed seed, so that no cache of whole answers can help.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from vlm_grpo.records import Record
from vlm_grpo.rewards import make_reward

WORDS = ["red", "blue", "green", "dog", "cat", "left", "right", "tall", "small", "table", "chair", "window", "street"]
TARGET = 20_000  # completions a second for format, accuracy and iou together
GROUP = 8


def thought(source: random.Random) -> str:
    """About 60 words of reasoning."""
    return " ".join(source.choices(WORDS, k=60))


def text_case(source: random.Random) -> tuple[str, dict]:
    return " ".join(source.choices(WORDS, k=3)), {"answer": " ".join(source.choices(WORDS, k=3))}


def mcq_case(source: random.Random) -> tuple[str, dict]:
    letter = source.choice("ABCD")
    options = tuple(f"{word} {source.randrange(1000)}" for word in source.sample(WORDS, 4))
    return source.choice([f"({letter})", f"{letter}.", f"Answer: {letter}"]), {"answer": "B", "options": options}


def numeric_case(source: random.Random) -> tuple[str, dict]:
    return f"{source.uniform(0, 1e4):.2f} cm", {"answer": f"{source.uniform(0, 1e4):.2f} cm"}


def box_case(source: random.Random) -> tuple[str, dict]:
    box, truth = ([source.randrange(1000) for _ in range(4)] for _ in range(2))
    return f'{{"bbox_2d": {box}}}', {"answer": truth, "task": "rec"}


CASES: dict[str, tuple[Callable, list[str]]] = {
    "text": (text_case, ["format", "accuracy"]),
    "mcq": (mcq_case, ["format", "accuracy"]),
    "numeric": (numeric_case, ["format", "accuracy"]),
    "box": (box_case, ["format", "iou"]),
}


def batch(case: Callable, count: int, source: random.Random) -> tuple[list[str], list[Record]]:
    """Completions and their records; the completions of a group share one."""
    completions, records = [], []
    for number in range(count):
        answer, values = case(source)
        if number % GROUP == 0:
            record = Record(id=number, question="q", **values)
        completions.append(f"<think>{thought(source)}</think>\n<answer>{answer}</answer>")
        records.append(record)
    return completions, records


def rate(names: list[str], completions: list[str], records: list[Record]) -> float:
    """Completions a second, each scored by all named rewards."""
    rewards = [make_reward(name) for name in names]
    started = time.perf_counter()
    for reward in rewards:
        reward(prompts=None, completions=completions, record=records)
    return len(completions) / (time.perf_counter() - started)


def main() -> None:
    """Print a line for each kind of answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--completions", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{'answer':<10} {'rewards':<18} {'completions/s':>14} {'spread':>17}   target {TARGET:,}")
    for name, (case, rewards) in CASES.items():
        rates = [
            rate(rewards, *batch(case, options.completions, random.Random(repeat))) for repeat in range(options.repeats)
        ]
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        print(f"{name:<10} {' + '.join(rewards):<18} {statistics.median(rates):>14,.0f} {spread:>17}")


if __name__ == "__main__":
    main()
