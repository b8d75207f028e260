"""Scripts a second that the sandbox runs, with workers that wait and with a new sandbox for each script.

python benchmarks/sandbox.py [--scripts 200] [--side 672] [--at_once 8]
A script turns an image of that many pixels a side and gives it back. "slow" has one other script that never ends among
the first: the quick ones must not wait for it.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from vlm_grpo.envs.sandbox import Sandbox, SandboxError, SandboxSettings
from vlm_grpo.envs.sandbox.process import BACKENDS

SCRIPT = "result = image.rotate(90, expand=True)"
ENDLESS = "while True: pass"
COLD = 3  # sandboxes that are made for one script each
FEWER = 10  # times, where each script starts a Python of its own


class Speed(NamedTuple):
    """Scripts a second, and seconds that the middle and the slowest of them took from call to result."""

    rate: float
    middle: float
    slowest: float


def settings(at_once: int) -> SandboxSettings:
    """As many workers as scripts at a time, and one for the script that never ends."""
    return SandboxSettings(time_limit=30.0, workers=at_once + 1)


def cold(backend: str, image: Image.Image, at_once: int) -> float:
    """Seconds for one script with everything that has to start before."""
    seconds = []
    for _ in range(COLD):
        began = time.perf_counter()
        sandbox = Sandbox(settings(at_once), backend)
        sandbox.run(SCRIPT, image)
        seconds.append(time.perf_counter() - began)
        sandbox.close()
    return statistics.median(seconds)


def warm(sandbox: Sandbox, image: Image.Image, scripts: int, at_once: int) -> Speed:
    """Many scripts, some at a time.

    Raises:
        RuntimeError: one of them failed.
    """

    def timed(_: int) -> float:
        began = time.perf_counter()
        result = sandbox.run(SCRIPT, image)
        if result.status != "ok":
            raise RuntimeError(f"{result.status}: {result.stderr}")
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as executor:
        seconds = list(executor.map(timed, range(scripts)))
    return Speed(scripts / (time.perf_counter() - began), statistics.median(seconds), max(seconds))


def measure(backend: str, options: argparse.Namespace) -> None:
    """Print a backend's line of the table."""
    image = Image.effect_noise((options.side, options.side), 60).convert("RGB")
    scripts = options.scripts // FEWER if backend == "bubblewrap_each" else options.scripts
    try:
        sandbox = Sandbox(settings(options.at_once), backend)
    except SandboxError as error:
        print(f"{backend:<16} not here: {error!s:.90}")
        return
    warm(sandbox, image, options.at_once, options.at_once)
    alone, many = warm(sandbox, image, scripts, 1), warm(sandbox, image, scripts, options.at_once)
    with ThreadPoolExecutor(1) as executor:
        slow = executor.submit(sandbox.run, ENDLESS)
        beside = warm(sandbox, image, min(scripts, FEWER * options.at_once), options.at_once)
        assert not slow.done(), "the slow script ended before the quick ones: give it more time"
        sandbox.close()
    seconds = cold(backend, image, options.at_once)
    cells = f"{1 / seconds:>6.1f} {alone.rate:>6.1f} {many.rate:>6.1f} {beside.rate:>6.1f}"
    print(f"{backend:<16} {cells} {1000 * many.middle:>10.0f} {1000 * many.slowest:>11.0f}", flush=True)


def main() -> None:
    """Print a line for each backend."""
    logging.getLogger("vlm_grpo").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scripts", type=int, default=200)
    parser.add_argument("--side", type=int, default=672)
    parser.add_argument("--at_once", type=int, default=8)
    options = parser.parse_args()
    print(f"scripts a second on {os.cpu_count()} cores, images of {options.side} x {options.side}")
    titles = f"{'cold':>6} {'one':>6} {options.at_once:>6} {'slow':>6} {'middle, ms':>10} {'slowest, ms':>11}"
    print(f"{'backend':<16} {titles}")
    for backend in BACKENDS:
        measure(backend, options)


if __name__ == "__main__":
    main()
