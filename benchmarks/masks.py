"""How much of a mask a few numbers keep, and how fast masks are encoded and scored: seconds of one core.

python benchmarks/masks.py RESULTS [--picture docs/masks.png]
RESULTS is a list of instance masks in COCO's results format, `.json` or `.json.gz`, with RLE. The numbers in README.md
are those of cocoapi's `results/instances_val2014_fakesegm100_results.json`, perturbed copies of COCO's annotations.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_grpo.masks import decode_mask, encode_mask, fit_iou, read_rle
from vlm_grpo.masks.contours import extract_contours
from vlm_grpo.masks.raster import fill_polygon, regions_to_mask
from vlm_grpo.records import Record
from vlm_grpo.rewards import make_reward

LEAST_AREA = 100  # pixels
CONVEX = 0.97  # share of its convex hull that a mask called convex covers
SETTINGS = [
    *((codec, terms, 1) for codec in ("chebyshev", "fourier", "polygon") for terms in (4, 8, 16)),
    ("chebyshev", 8, 8),
    ("fourier", 8, 8),
]
PICTURE = [("chebyshev", 4), ("chebyshev", 8), ("fourier", 8), ("polygon", 8)]


class Sample(NamedTuple):
    """A mask, (H, W) of bool, and its RLE."""

    mask: np.ndarray
    rle: dict


def read_samples(path: Path) -> list[Sample]:
    """Every mask of at least LEAST_AREA pixels."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rles = [entry["segmentation"] for entry in json.load(file)]
    truths = [read_rle(rle) for rle in rles]
    return [
        Sample(regions_to_mask([truth.boundaries], truth.height, truth.width), rle)
        for rle, truth in zip(rles, truths, strict=True)
        if truth.area >= LEAST_AREA
    ]


def is_convex(mask: np.ndarray) -> bool:
    """Whether a mask fills almost all of its convex hull."""
    from scipy.spatial import ConvexHull

    points = np.concatenate(extract_contours(mask))
    hull = regions_to_mask([fill_polygon(points[ConvexHull(points).vertices], *mask.shape)], *mask.shape)
    return mask.sum() >= CONVEX * hull.sum()


def blobs(count: int = 50) -> list[np.ndarray]:
    """Smooth convex masks, (240, 320), by support functions h whose radius of curvature h + h'' stays positive."""
    source, angle = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 400, endpoint=False)
    masks = []
    for _ in range(count):
        support, slope = np.ones_like(angle), np.zeros_like(angle)
        for k, size in ((2, 0.2), (3, 0.06), (4, 0.03)):
            wave = k * angle + source.uniform(0, 2 * np.pi)
            support, slope = support + size * np.cos(wave), slope - size * k * np.sin(wave)
        x = support * np.cos(angle) - slope * np.sin(angle)
        y = support * np.sin(angle) + slope * np.cos(angle)
        masks.append(
            regions_to_mask([fill_polygon(np.stack([160 + 85 * x, 120 + 85 * y], axis=1), 240, 320)], 240, 320)
        )
    return masks


def fits(samples: list[Sample], groups: dict[str, np.ndarray]) -> None:
    """Print IoU of masks with their shapes, and masks encoded a second."""
    names = " ".join(f"{name:>10}" for name in (*groups, "blobs"))
    drawn = blobs()
    head = f"{'mean':>6} {'median':>7} {'p10':>6} {names} {'chars':>8} {'/s':>6}"
    print(f"{'codec':<10} {'terms':>5} {'starts':>6} {head}")
    for codec, terms, starts in SETTINGS:
        started = time.process_time()
        shapes = [encode_mask(sample.mask, codec, terms, starts) for sample in samples]
        speed = len(samples) / (time.process_time() - started)
        scores = np.array([fit_iou(sample.mask, shape) for sample, shape in zip(samples, shapes, strict=True)])
        characters = np.mean([len(json.dumps(shape)) for shape in shapes])
        means = [scores[chosen].mean() for chosen in groups.values()]
        means.append(np.mean([fit_iou(blob, encode_mask(blob, codec, terms, starts)) for blob in drawn]))
        parts = " ".join(f"{mean:>10.3f}" for mean in means)
        shown = f"{scores.mean():>6.3f} {np.median(scores):>7.3f} {np.quantile(scores, 0.1):>6.3f} {parts}"
        print(f"{codec:<10} {terms:>5} {starts:>6} {shown} {characters:>8.0f} {speed:>6.0f}")


def scoring(samples: list[Sample], repeats: int = 5) -> None:
    """Print completions scored a second by `mask_iou` and `format`, called as a trainer calls them; 8 share a mask."""
    golds = [encode_mask(sample.mask) for sample in samples]
    for names in (["mask_iou"], ["mask_iou", "format"]):
        rates = []
        for repeat in range(repeats):
            completions, records = _batch(samples, golds, repeat)
            rewards = [make_reward(name) for name in names]
            started = time.process_time()
            for reward in rewards:
                reward(prompts=None, completions=completions, record=records)
            rates.append(len(completions) / (time.process_time() - started))
        print(f"{' + '.join(names)}: {np.median(rates):,.0f}/s ({min(rates):,.0f}-{max(rates):,.0f})")


def _batch(samples: list[Sample], golds: list[dict], seed: int) -> tuple[list[str], list[Record]]:
    """Eight answers for each mask, the gold shape with noise on its numbers, all different."""
    source = np.random.default_rng(seed)
    completions, records = [], []
    for sample, gold in zip(samples, golds, strict=True):
        extra = {"mask": sample.rle, "box_space": "thousand"}
        record = Record(id=0, question="q", answer=gold, task="seg", extra=extra)
        for _ in range(8):
            parts = [
                {**part, **{axis: (np.array(part[axis]) + source.integers(-9, 9, 8)).tolist() for axis in "xy"}}
                for part in gold["chebyshev"]
            ]
            answer = json.dumps({"chebyshev": parts})
            completions.append(f"<think>{'It is there. ' * 20}</think>\n<answer>{answer}</answer>")
            records.append(record)
    return completions, records


def draw(samples: list[Sample], path: Path) -> None:
    """Write a picture: masks in rows, what shapes of them cover in columns."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(samples), len(PICTURE) + 1, figsize=(8, 1.7 * len(samples)), dpi=80)
    for line, sample in zip(axes, samples, strict=True):
        rows, columns = np.flatnonzero(sample.mask.any(axis=1)), np.flatnonzero(sample.mask.any(axis=0))
        edge = 3 + (rows[-1] - rows[0] + columns[-1] - columns[0]) // 20
        for axis, setting in zip(line, (None, *PICTURE), strict=True):
            axis.imshow(1 - 0.45 * sample.mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xlim=(columns[0] - edge, columns[-1] + edge), ylim=(rows[-1] + edge, rows[0] - edge))
            axis.set(xticks=[], yticks=[])
            if setting is None:
                axis.set_title("mask", fontsize=8)
                continue
            shape = encode_mask(sample.mask, *setting)
            axis.contour(decode_mask(shape, *sample.mask.shape), [0.5], colors="crimson", linewidths=1.3)
            axis.set_title(f"{setting[0]} {setting[1]}: {fit_iou(sample.mask, shape):.2f}", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Print both tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="COCO results with RLE masks, .json or .json.gz")
    parser.add_argument("--picture", type=Path, help="write a PNG with masks and their shapes")
    parser.add_argument("--masks", type=int, nargs="+", default=[0, 34, 116, 300], help="masks in the picture")
    arguments = parser.parse_args()
    samples = read_samples(arguments.results)
    groups = {
        "convex": np.array([is_convex(sample.mask) for sample in samples]),
        "parts > 1": np.array([len(extract_contours(sample.mask)) > 1 for sample in samples]),
    }
    counts = ", ".join(f"{chosen.sum()} {name}" for name, chosen in groups.items())
    print(f"{len(samples)} masks of at least {LEAST_AREA} pixels: {counts}")
    if arguments.picture:
        draw([samples[number] for number in arguments.masks], arguments.picture)
    fits(samples, groups)
    scoring(samples)


if __name__ == "__main__":
    main()
