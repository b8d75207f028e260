"""Completions a second that the rewards score on one core, called as a trainer calls them.

python benchmarks/rewards.py [--completions 20000] [--repeats 5]
Completions are all different and drawn once with a fixed seed, so that no cache of whole answers can help.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

from vlm_grpo.records import Record
from vlm_grpo.rewards import make_reward

WORDS = ["red", "blue", "green", "dog", "cat", "left", "right", "tall", "small", "table", "chair", "window", "street"]
# completions a second
TARGETS = {("format", "accuracy", "iou"): 20_000, ("detection",): 2_000}
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


def boxes_case(source: random.Random) -> tuple[str, dict]:
    """20 boxes of 5 labels each side; the given ones are near the true ones."""
    truth, given = [], []
    for _ in range(20):
        x, y, width, height = (source.randrange(low, 400) for low in (0, 0, 50, 50))
        label = source.choice(WORDS[:5])
        truth.append({"bbox_2d": [x, y, x + width, y + height], "label": label})
        near = [max(0, value + source.randint(-20, 20)) for value in truth[-1]["bbox_2d"]]
        given.append({"bbox_2d": near, "label": label, "Confidence": round(source.random(), 2)})
    source.shuffle(given)
    return json.dumps(given), {"answer": truth, "task": "ovd"}


def count_case(source: random.Random) -> tuple[str, dict]:
    return f"There are {source.randrange(100)} cubes.", {"answer": source.randrange(100), "task": "counting"}


def steps_case(source: random.Random) -> tuple[str, dict]:
    steps = tuple(" ".join(source.choices(WORDS, k=10)) for _ in range(5))
    return " ".join(source.choices(WORDS, k=3)), {"answer": "red dog", "reference_steps": steps}


CASES: dict[str, tuple[Callable, list[str]]] = {
    "text": (text_case, ["format", "accuracy", "iou"]),
    "mcq": (mcq_case, ["format", "accuracy", "iou"]),
    "numeric": (numeric_case, ["format", "accuracy", "iou"]),
    "box": (box_case, ["format", "accuracy", "iou"]),
    "count": (count_case, ["format", "count"]),
    "words": (text_case, ["word_f1", "exact_match"]),
    "20 boxes": (boxes_case, ["detection"]),
    "20 boxes ": (boxes_case, ["ovd"]),
    "20 boxes  ": (boxes_case, ["od_ap"]),
    "5 steps": (steps_case, ["reasoning_overlap"]),
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
    started = time.process_time()  # of this process: others on the core do not count
    for reward in rewards:
        reward(prompts=None, completions=completions, record=records)
    return len(completions) / (time.process_time() - started)


def main() -> None:
    """Print a line for each kind of answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--completions", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{'answer':<10} {'rewards':<24} {'completions/s':>14} {'range':>17} {'target':>8}")
    for name, (case, rewards) in CASES.items():
        count = options.completions // (10 if name.startswith("20 boxes") else 1)
        rates = [rate(rewards, *batch(case, count, random.Random(repeat))) for repeat in range(options.repeats)]
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        target = f"{TARGETS[tuple(rewards)]:,}" if tuple(rewards) in TARGETS else ""
        middle = statistics.median(rates)
        print(f"{name:<10} {' + '.join(rewards):<24} {middle:>14,.0f} {spread:>17} {target:>8}")


if __name__ == "__main__":
    main()
