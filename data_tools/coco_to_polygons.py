"""Convert COCO's instance masks to jsonl questions whose answers are outlines, e.g. 8 Chebyshev terms per axis.

python data_tools/coco_to_polygons.py --coco_dir coco --split val2017 --download --output_dir seg
python data_tools/coco_to_polygons.py --coco_dir coco --split train2017 --val_split_ratio 0.02 --output_dir seg

Reads COCO_DIR/annotations/instances_SPLIT.json and writes OUTPUT_DIR/val.jsonl for a split that begins with val, else
train.jsonl, so that two runs can write to one folder. --val_split_ratio divides one split into both files. Train with
`--task_type seg --image_folders COCO_DIR`. docs/masks.md describes the format.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

if TYPE_CHECKING:
    from vlm_grpo.data.datasets.coco import Segment, SegResult, ShapeOptions
    from vlm_grpo.data.errors import Problem

SERVER = "http://images.cocodataset.org"
ANNOTATIONS = "annotations_trainval{year}.zip"
CHUNK = 64  # masks per work item


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; exit with status 2 if one is out of range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--coco_dir", required=True, type=Path, metavar="FOLDER", help="COCO: annotations/ and one folder per split")
    add(
        "--split", default="val2017", metavar="NAME", help="train2017, val2017, train2014 or val2014 (default: val2017)"
    )
    add("--download", action="store_true", help="first download missing files to --coco_dir; can be interrupted")
    add("--url", default=SERVER, metavar="URL", help=f"server for --download (default: {SERVER})")
    add("--codec", default="chebyshev", metavar="NAME", help="chebyshev, fourier or polygon (default: chebyshev)")
    add("--terms", type=int, default=8, help="coefficients per axis, or corners of a polygon (default: 8)")
    add(
        "--starts",
        type=int,
        default=1,
        help="start points to try; 8 fits better but takes 5 times as long (default: 1)",
    )
    add("--min_area", type=int, default=100, metavar="PIXELS", help="leave out smaller masks (default: 100)")
    add("--min_fit", type=float, default=0.0, metavar="IOU", help="leave out masks with a lower IoU with their shape")
    add("--max_same", type=int, default=3, metavar="N", help="leave out categories with more objects in an image (3)")
    add("--limit", type=int, metavar="N", help="stop after N objects")
    add("--val_split_ratio", type=float, default=0.0, metavar="RATIO", help="fraction of the images for val.jsonl")
    add("--seed", type=int, default=0, help="seed for sampling these images (default: 0)")
    add("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add("--output_dir", required=True, type=Path, metavar="FOLDER", help="folder for train.jsonl and val.jsonl")
    add("--overwrite", action="store_true", help="replace existing outputs")
    add("--skip_bad", action="store_true", help="leave out invalid entries and write the rest (exit status 1)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.val_split_ratio < 1:
        parser.error(f"--val_split_ratio must be at least 0 and below 1, got {arguments.val_split_ratio}")
    for name in ("starts", "max_same", "workers", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if arguments.url != SERVER and not arguments.download:
        parser.error("--url has no effect without --download")
    return arguments


def convert(arguments: argparse.Namespace) -> int:
    """Write the rows; return 1 if there are problems. In that case, nothing is written without --skip_bad."""
    from vlm_grpo.data.datasets.coco import read_instances, segment_targets
    from vlm_grpo.data.errors import problem_table
    from vlm_grpo.io import refuse_existing

    options = shape_options(arguments)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    of_split = "val.jsonl" if arguments.split.startswith("val") else "train.jsonl"
    names = ["train.jsonl", "val.jsonl"] if arguments.val_split_ratio else [of_split]
    paths = [arguments.output_dir / name for name in names]
    refuse_existing(paths, overwrite=arguments.overwrite)
    source = arguments.coco_dir / "annotations" / f"instances_{arguments.split}.json"
    if arguments.download:
        download(arguments, source)
    instances = read_instances(source)
    segments = list(segment_targets(instances, source, arguments.max_same))[: arguments.limit]
    held_out = val_images(segments, arguments.val_split_ratio, arguments.seed)
    problems = list(instances.problems)
    counts = write(seg_rows(segments, options, arguments.workers), paths, held_out, problems, arguments)
    if problems:
        print(f"left out\n{problem_table(problems)}", file=sys.stderr)
    for path, count in zip(paths, counts, strict=True):
        print(f"{path}: {count:,} rows")
    return int(bool(problems))


def shape_options(arguments: argparse.Namespace) -> ShapeOptions:
    """Return the settings for converting masks to shapes.

    Raises:
        KeyError: the codec is unknown.
        ValueError: the number of terms is out of range.
    """
    from vlm_grpo.data.datasets.coco import ShapeOptions
    from vlm_grpo.masks import CODECS, MAX_TERMS, MIN_TERMS

    CODECS[arguments.codec]
    if not MIN_TERMS <= arguments.terms <= MAX_TERMS:
        raise ValueError(f"--terms must be from {MIN_TERMS} to {MAX_TERMS}, got {arguments.terms}")
    return ShapeOptions(arguments.codec, arguments.terms, arguments.starts, arguments.min_area, arguments.min_fit)


def download(arguments: argparse.Namespace, source: Path) -> None:
    """Download annotations and images and unpack them to --coco_dir; existing files are kept.

    Raises:
        ValueError: COCO has no such split, or an archive is corrupt.
        OSError: the server does not respond, or the disk is full.
    """
    from vlm_grpo.data.download import fetch, unpack

    split, folder = arguments.split, arguments.coco_dir
    if split not in ("train2017", "val2017", "train2014", "val2014"):
        raise ValueError(f"--split {split}: --download supports train2017, val2017, train2014 and val2014")
    if not source.exists():
        name = ANNOTATIONS.format(year=split[-4:])
        archive = fetch(f"{arguments.url}/annotations/{name}", folder / name)
        unpack(archive, folder, only=f"annotations/{source.name}")
    archive = fetch(f"{arguments.url}/zips/{split}.zip", folder / f"{split}.zip")
    print(f"{folder / split}: {unpack(archive, folder):,} new images; {archive} can be deleted")


def val_images(segments: list[Segment], ratio: float, seed: int) -> set[int]:
    """Return the ids of the images in val.jsonl.

    Raises:
        ValueError: one of the files would have no images.
    """
    images = sorted({segment.image.id for segment in segments})
    count = round(len(images) * ratio)
    if ratio and not 0 < count < len(images):
        raise ValueError(f"--val_split_ratio {ratio} of {len(images)} images leaves one split empty")
    random.Random(seed).shuffle(images)
    return set(images[:count])


def seg_rows(segments: list[Segment], options: ShapeOptions, workers: int) -> Iterator[SegResult]:
    """Yield the result for each segment, in order for any number of workers."""
    from tqdm import tqdm

    from vlm_grpo.data.datasets.coco import seg_row

    work = partial(seg_row, options=options)
    bar_options = {"total": len(segments), "disable": None, "unit": "mask"}  # disabled if stderr is not a terminal
    if workers == 1:
        yield from tqdm(map(work, segments), **bar_options)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from tqdm(pool.map(work, segments, chunksize=CHUNK), **bar_options)


def write(
    results: Iterable[SegResult],
    paths: list[Path],
    held_out: set[int],
    problems: list[Problem],
    arguments: argparse.Namespace,
) -> list[int]:
    """Write all files or none and return the number of rows in each; append problems to `problems`.

    Raises:
        DataError: there is a problem and --skip_bad is not set, or a file would be empty.
    """
    from vlm_grpo.data.errors import DataError, Problem
    from vlm_grpo.io import json_line, whole_files

    counts, reasons = [0] * len(paths), Counter[str]()
    with whole_files(paths) as files:
        for result in results:
            if result.row is not None:
                part = int(result.row["image_id"] in held_out)
                image = f"{arguments.split}/{result.row['image']}"
                files[part].write(json_line({**result.row, "image": image}))
                counts[part] += 1
            elif result.problem is not None:
                problems.append(result.problem)
            else:
                reasons[result.reason] += 1
        for reason, count in sorted(reasons.items()):
            print(f"{count:,} objects left out: {reason}")
        for path, count in zip(paths, counts, strict=True):
            if not count:
                problems.append(Problem(str(path), "rows", "none", "at least one object"))
        if problems and not (arguments.skip_bad and all(counts)):
            raise DataError(problems)
    return counts


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if the data have problems, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
