"""Split the rows of jsonl files into a training split and a held-out split that share no image.

python data_tools/split.py --data_file_paths a.jsonl:b.jsonl --val_split_ratio 0.1 --output_dir split
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Hashable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

if TYPE_CHECKING:
    from vlm_grpo.data.errors import Problem
    from vlm_grpo.data.readers.text_files import JsonlSource, RawRow
    from vlm_grpo.data.split import RowGroups

PARTS = ("train", "val")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; exit with status 2 if they conflict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data_file_paths", required=True, metavar="FILES", help="jsonl files, separated by ':'")
    add("--image_folders", metavar="FOLDERS", help="image folder of each file, separated by ':', or one folder for all")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--val_split_ratio", type=float, metavar="RATIO", help="fraction of all rows to hold out, as 0.1")
    size.add_argument("--val_rows", type=int, metavar="ROWS", help="number of rows to hold out")
    add(
        "--group_by", default="image", metavar="KEY", help="keep rows with the same image, or the same column, together"
    )
    add("--seed", type=int, default=0, help="seed for sampling the held-out groups (default: 0)")
    add("--output_dir", required=True, metavar="FOLDER", help="folder for NAME_train.jsonl and NAME_val.jsonl per file")
    add("--overwrite", action="store_true", help="replace existing outputs")
    return parser.parse_args(argv)


def split(arguments: argparse.Namespace) -> int:
    """Write both splits of every file, with the lines unchanged and in their original order."""
    from vlm_grpo.data.split import RowGroups, sample_held_out
    from vlm_grpo.io import refuse_existing

    sources = open_files(arguments)
    outputs = output_paths(arguments, sources)
    refuse_existing([path for pair in outputs for path in pair], overwrite=arguments.overwrite)
    groups = RowGroups()
    for source in sources:
        group_rows(source, arguments.group_by, groups)
    ratio = arguments.val_split_ratio
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"--val_split_ratio must be between 0 and 1, got {ratio}")
    target = round(len(groups) * ratio) if arguments.val_rows is None else arguments.val_rows
    members = groups.members()
    held_out = sample_held_out(members, target, arguments.seed)
    counts = write_parts(sources, outputs, held_out)
    for pair, numbers in zip(outputs, counts, strict=True):
        for path, count in zip(pair, numbers, strict=True):
            print(f"{path}: {count:,} rows")
    print(f"{len(groups):,} rows in {len(members):,} groups: {len(held_out):,} held out, {target:,} asked for")
    return 0


def open_files(arguments: argparse.Namespace) -> list[JsonlSource]:
    """Open the files with their image folders."""
    from vlm_grpo.data.errors import DataError
    from vlm_grpo.data.readers import open_sources
    from vlm_grpo.data.readers.text_files import JsonlSource

    result = open_sources(arguments.data_file_paths, image_folders=arguments.image_folders)
    if result.problems:
        raise DataError(result.problems)
    for source in result.sources:
        if not isinstance(source, JsonlSource):
            raise ValueError(f"{source.name}: expected a jsonl file; convert it with data_tools/convert.py")
    return result.sources


def output_paths(arguments: argparse.Namespace, sources: list[JsonlSource]) -> list[tuple[Path, Path]]:
    """Return the paths of the two splits of each file."""
    folder = Path(arguments.output_dir)
    if not folder.is_dir():
        raise ValueError(f"--output_dir {folder}: no such folder; create it first")
    names = [source.path.stem for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--data_file_paths: two files are named {name}, and their outputs would collide")
    pairs = [tuple(folder / f"{name}_{part}.jsonl" for part in PARTS) for name in names]
    inputs = {source.path.resolve() for source in sources}
    for path in (path for pair in pairs for path in pair):
        if path.resolve() in inputs:
            raise ValueError(f"{path} is also an input; choose another --output_dir")
    return pairs


def group_rows(source: JsonlSource, group_by: str, groups: RowGroups) -> None:
    """Add the rows of a file to the groups.

    Raises:
        DataError: rows that are no JSON object, lack the column to group by, or whose images cannot be told.
    """
    from vlm_grpo.data.errors import DataError

    problems: list[Problem] = []
    for index, raw in enumerate(source.rows()):
        groups.add(row_keys(source, index, raw, group_by, problems))
    if problems:
        raise DataError(problems)


def row_keys(source: JsonlSource, index: int, raw: RawRow, group_by: str, problems: list[Problem]) -> list[Hashable]:
    """Return the keys by which a row is grouped; append problems to `problems`."""
    from vlm_grpo.data.errors import Problem
    from vlm_grpo.data.parsing import parse_raw_row

    where = source.where(index)
    if isinstance(raw, Problem):
        problems.append(raw)
    elif group_by == "image":
        parsed = parse_raw_row(raw, where, index, source.config)
        problems += (problem for problem in parsed.problems if "image" in problem.field and not problem.is_warning)
        return [hash(ref.key) for ref in (*parsed.images, *parsed.videos)]  # keys would take much more memory
    elif group_by != "none" and raw.get(group_by) is None:
        problems.append(Problem(where, group_by, "missing or null", "a value to group by"))
    elif group_by != "none":
        return [json.dumps(raw[group_by], sort_keys=True)]
    return []


def write_parts(
    sources: list[JsonlSource], outputs: list[tuple[Path, Path]], held_out: set[int]
) -> list[tuple[int, int]]:
    """Copy each line to its split; return the numbers of rows in both splits of each file."""
    from vlm_grpo.data.readers.text_files import content_lines
    from vlm_grpo.io import whole_files

    counts = []
    start = 0
    with whole_files([path for pair in outputs for path in pair]) as files:
        for number, source in enumerate(sources):
            lines = (line for _, _, line in content_lines(source.path))
            val_count = 0
            for row, line in enumerate(islice(lines, len(source)), start):
                is_held_out = row in held_out
                val_count += is_held_out
                files[2 * number + is_held_out].write(line if line.endswith(b"\n") else line + b"\n")
            counts.append((len(source) - val_count, val_count))
            start += len(source)
    return counts


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if rows cannot be read, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: split(arguments))


if __name__ == "__main__":
    sys.exit(main())
