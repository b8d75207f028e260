"""How fast pages become pictures and are compared with their designs, in wall-clock and in processor seconds.

python benchmarks/rendering.py [--pages 60]
Every page differs by a word, so that none comes from the cache but in the line that says so. Processor seconds are
those of the browser's processes: on a machine that does other work they say more than the wall clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from statistics import median

import psutil

from vlm_grpo.envs.browser.renderer import Render, Renderer
from vlm_grpo.envs.similarity import Similarity, page_similarity
from vlm_grpo.synthetic.web_pages import page_example

SIZES = ((336, 336), (1280, 800))
THREADS = 8  # that ask for pages at the same time
LONG = "<article>" + "<h2>Part</h2><p>A sentence of some words about nothing much. " * 40 + "</article>"


def texts(width: int, count: int) -> list[str]:
    """Toy pages, in the larger viewport with some thousand words more."""
    pages = [page_example(Random(number), number, 336).answer for number in range(4)]
    more = LONG if width > 336 else ""
    return [pages[number % 4].replace("</body>", f"{more}<p>{number}</body>") for number in range(count)]


def processor_seconds(renderer: Renderer) -> float:
    """What the browser's processes have used so far."""
    browser = psutil.Process(renderer.browser_pid)
    return sum(sum(process.cpu_times()[:4]) for process in (browser, *browser.children(recursive=True)))


def measured(renderer: Renderer, render: Callable[[str], object], pages: list[str], threads: int) -> str:
    """Pages a second, how long one takes, and processor seconds each."""
    waits = []

    def one(page: str) -> None:
        started = time.perf_counter()
        render(page)
        waits.append(time.perf_counter() - started)

    before, started = processor_seconds(renderer), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, pages))
    rate = len(pages) / (time.perf_counter() - started)
    used = (processor_seconds(renderer) - before) / len(pages)
    return f"{rate:,.1f} | {median(waits):.4f} | {used:.3f}"


def measure(width: int, height: int, count: int) -> None:
    """Print the lines of one viewport."""
    for pages in (1, 2, 4):
        renderer = Renderer(pages=pages, seconds=120)
        all_texts = texts(width, 2 * count + 1)
        started = time.perf_counter()
        first = renderer.render(all_texts[0], width, height)
        cold = time.perf_counter() - started
        render = partial(_rendered, renderer, width, height)
        names = f"| {width} x {height} | {pages}"
        if pages == 1:
            print(f"{names} | cold, with the start of the browser | {1 / cold:.1f} | {cold:.4f} | |")
            print(f"{names} | one after the other | {measured(renderer, render, all_texts[1:count], 1)} |")
        print(f"{names} | {THREADS} threads | {measured(renderer, render, all_texts[count + 1 :], THREADS)} |")
        if pages == 1:
            print(f"{names} | cached | {measured(renderer, render, [all_texts[1]] * 1000, 1)} |")
            alike = partial(_compared, first, render(all_texts[1]))
            print(f"{names} | compared | {measured(renderer, alike, all_texts[:20], 1)} |")
        renderer.close()


def _rendered(renderer: Renderer, width: int, height: int, page: str) -> Render:
    return renderer.render(page, width, height)


def _compared(design: Render, page: Render, _: str) -> Similarity:
    return page_similarity(design, page)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=60, help="how many are rendered for each line")
    count = parser.parse_args().pages
    print("| viewport | tabs | | pages/s | seconds each, median | processor seconds each |")
    print("|---|---|---|---|---|---|")
    for width, height in SIZES:
        measure(width, height, count)


if __name__ == "__main__":
    main()
