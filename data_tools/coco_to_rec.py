"""Convert RefCOCO, RefCOCO+, RefCOCOg or COCO's instance annotations to jsonl questions about boxes.

python data_tools/coco_to_rec.py --refs "refcoco/refs(unc).p" --split val --output refcoco_val.jsonl
python data_tools/coco_to_rec.py --instances instances_val2017.json --task ovd --output ovd_val.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

if TYPE_CHECKING:
    from vlm_grpo.data.datasets.coco import Instances
    from vlm_grpo.data.errors import Problem

CocoRow = dict[str, Any]
IMAGE_PATH = "template of image paths with {file_name} and {id}, as train2014/COCO_train2014_{id:012d}.jpg"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; exit with status 2 if they conflict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--refs", metavar="FILE", help="refs(unc).p, refs(umd).p or refs(google).p; omit it for plain COCO")
    add("--instances", metavar="FILE", help="COCO annotations (default with --refs: instances.json in its folder)")
    add("--split", metavar="NAME", help="split of --refs: train, val, test, testA or testB")
    add(
        "--sentences",
        choices=("all", "first"),
        help="one row per expression (default), or for the first of a reference",
    )
    add("--task", choices=("rec", "ovd"), default="rec", help="one box, or all boxes of a category (plain COCO only)")
    add("--image_path", default="{file_name}", metavar="TEMPLATE", help=IMAGE_PATH)
    add("--image_folder", metavar="FOLDER", help="check that each image exists and has its annotated size")
    add("--output", required=True, metavar="FILE", help="jsonl file to write")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--skip_bad", action="store_true", help="leave out invalid entries and write the rest (exit status 1)")
    arguments = parser.parse_args(argv)
    if not arguments.refs and not arguments.instances:
        parser.error("--refs or --instances is required")
    if arguments.refs and not arguments.split:
        parser.error("--refs needs --split")
    if arguments.refs and arguments.task != "rec":
        parser.error("--task ovd supports plain COCO annotations only; remove --refs")
    for name in () if arguments.refs else ("split", "sentences"):
        if getattr(arguments, name):
            parser.error(f"--{name} has no effect without --refs")
    return arguments


def convert(arguments: argparse.Namespace) -> int:
    """Write the rows; return 1 if there are problems. In that case, nothing is written without --skip_bad."""
    from vlm_grpo.data.datasets.coco import read_instances
    from vlm_grpo.data.errors import DataError, Problem, problem_table
    from vlm_grpo.io import json_line, refuse_existing, whole_file

    refuse_existing([arguments.output], overwrite=arguments.overwrite)
    image_path(arguments.image_path, "x.jpg", 1)
    if arguments.image_folder and not Path(arguments.image_folder).is_dir():
        raise ValueError(f"--image_folder {arguments.image_folder}: no such folder")
    instances = read_instances(arguments.instances or Path(arguments.refs).with_name("instances.json"))
    problems = list(instances.problems)
    rows = make_rows(arguments, instances, problems)
    for row in rows:
        row["image"] = image_path(arguments.image_path, row["image"], row["image_id"])
    if arguments.image_folder:
        rows = with_right_images(rows, instances, arguments.image_folder, problems)
    if not rows:
        problems.append(Problem(instances.name, "rows", "none", "at least one question"))
    if problems and not (rows and arguments.skip_bad):
        raise DataError(problems)
    with whole_file(arguments.output) as file:
        file.writelines(map(json_line, rows))
    if problems:
        print(f"left out\n{problem_table(problems)}", file=sys.stderr)
    print(f"{arguments.output}: {len(rows):,} rows, {len({row['image'] for row in rows}):,} images")
    return int(bool(problems))


def make_rows(arguments: argparse.Namespace, instances: Instances, problems: list[Problem]) -> list[CocoRow]:
    """Return the rows selected by the flags; append problems of references to `problems`."""
    from vlm_grpo.data.datasets.coco import category_rows, detection_rows
    from vlm_grpo.data.datasets.refcoco import read_refs, referring_rows
    from vlm_grpo.data.errors import known_name

    if not arguments.refs:
        return list((category_rows if arguments.task == "rec" else detection_rows)(instances))
    refs, found = read_refs(arguments.refs, instances)
    problems += found
    counts = {split: sum(ref.split == split for ref in refs) for split in sorted({ref.split for ref in refs})}
    if counts and arguments.split not in counts:
        raise ValueError(f"--split {arguments.split}: {arguments.refs} has {known_name(arguments.split, list(counts))}")
    shown = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    print(f"{arguments.refs}: {len(refs):,} references ({shown})")
    chosen = [ref for ref in refs if ref.split == arguments.split]
    return list(referring_rows(chosen, instances, first_only=arguments.sentences == "first"))


def image_path(template: str, file_name: str, number: int) -> str:
    """Return the path of an image in the rows.

    Raises:
        ValueError: the template has other fields than these two, or is malformed.
    """
    try:
        return template.format(file_name=file_name, id=number)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"--image_path {template}: expected {{file_name}} and {{id}} only, got {error}") from error


def with_right_images(rows: list[CocoRow], instances: Instances, folder: str, problems: list[Problem]) -> list[CocoRow]:
    """Return the rows whose image exists and has the annotated size; append the others to `problems`."""
    from vlm_grpo.data.datasets.coco import size_problems

    found = dict(size_problems(rows, instances, folder))
    problems += found.values()
    return [row for row in rows if row["image_id"] not in found]


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if the data have problems, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
