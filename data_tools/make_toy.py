"""Generate a small synthetic data set for a task: train.jsonl, held_out.jsonl and images/. Needs no download.

python data_tools/make_toy.py --task rec --rows 200 --output_dir toy/rec
python data_tools/make_toy.py --task all --rows 50 --output_dir toy
python data_tools/make_toy.py --task pick_image --output_dir toy_images
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

PLAYED_IN = {"damaged": "agent_code", "search": "agent_search", "visual_code": "visual_code"}
ALL, PICK = "all", "pick_image"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags."""
    from vlm_grpo.synthetic import TOYS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    names = f"{', '.join(TOYS)}, {PICK} (images to choose from), or {ALL} (all tasks, each in its own folder)"
    add("--task", required=True, choices=[*TOYS, PICK, ALL], metavar="NAME", help=names)
    add("--rows", type=int, default=100, metavar="N", help="total number of examples, a fifth held out (default: 100)")
    add("--output_dir", required=True, metavar="DIR", help="folder to create")
    add("--seed", type=int, default=0, help="random seed; the same flags produce the same files (default: 0)")
    add("--side", type=int, metavar="PIXELS", help=f"width and height of the images (default: 336; {PICK}: 56)")
    return parser.parse_args(argv)


def make(arguments: argparse.Namespace) -> int:
    """Write the data sets; print their paths and the training flags."""
    from vlm_grpo.synthetic import TOYS, write_toy
    from vlm_grpo.tasks import TASKS

    folder = Path(arguments.output_dir)
    if arguments.task == PICK:
        return make_candidates(folder, arguments)
    chosen = {name: folder / name for name in TOYS} if arguments.task == ALL else {arguments.task: folder}
    for name, place in chosen.items():
        files = write_toy(name, place, rows=arguments.rows, seed=arguments.seed, side=arguments.side or 336)
        counts = [sum(1 for _ in path.open("rb")) for path in (files.train, files.held_out)]
        task = name if name in TASKS else "default"
        if name == "search":
            from vlm_grpo.synthetic.retrieval_qa import write_documents

            print(f"documents for `vlm-grpo index`: {write_documents(place / 'documents.jsonl')}")
        print(f"{name}: {counts[0]} rows to train on and {counts[1]} held out in {place}")
        played = f" --environment {PLAYED_IN[name]}" if name in PLAYED_IN else ""
        print(f"  --data_file_paths {files.train} --image_folders {files.images} --task_type {task}{played}")
    return 0


def make_candidates(folder: Path, arguments: argparse.Namespace) -> int:
    """Write candidate images; print their folder and the training flags."""
    from vlm_grpo.synthetic.candidates import write_candidates

    paths = write_candidates(folder, rows=arguments.rows, seed=arguments.seed, side=arguments.side or 56)
    print(f"{PICK}: {len(paths)} images in {folder}")
    print(f"  --environment {PICK} --data_root {folder}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for a usage error or a folder with other content."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: make(arguments))


if __name__ == "__main__":
    sys.exit(main())
