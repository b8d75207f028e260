"""Convert data files of EasyR1 and RLLaVA (parquet), ms-swift and LLaVA to this package's jsonl, and back.

python data_tools/convert.py --from parquet --to jsonl --input train.parquet --output train.jsonl --image_folder images
python data_tools/convert.py --from jsonl --to swift --input train.jsonl --output swift.jsonl --image_folder images
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

NAMES = ("jsonl", "parquet", "swift", "llava")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; exit with status 2 if they conflict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--from", required=True, choices=NAMES, dest="source", help="format of the input")
    add("--to", required=True, choices=NAMES, dest="target", help="format of the output")
    add("--input", required=True, metavar="FILES", help="input files, separated by ':', which are merged")
    add("--output", required=True, metavar="FILE", help="file to write")
    add("--image_folder", metavar="FOLDER", help="folder of the images; those in a parquet file are extracted to it")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    arguments = parser.parse_args(argv)
    if arguments.source == arguments.target:
        parser.error(f"--from and --to are both {arguments.source}")
    return arguments


def convert(arguments: argparse.Namespace) -> int:
    """Write the output, unless a row cannot be converted."""
    from vlm_grpo.data.converters import FORMATS, convert_files
    from vlm_grpo.data.paths import split_paths
    from vlm_grpo.io import refuse_existing

    inputs = [Path(path) for path in split_paths(arguments.input)]
    folder = arguments.image_folder
    formats = [FORMATS[arguments.source], FORMATS[arguments.target]]
    if folder is None and any(file_format.needs_folder for file_format in formats):
        raise ValueError("parquet files contain the images: set --image_folder to the folder of their image files")
    if folder is not None and not any(file_format.uses_folder for file_format in formats):
        raise ValueError("--image_folder has no effect: paths in both formats are relative to a folder of your choice")
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"--image_folder {folder}: no such folder; create it first")
    refuse_existing([arguments.output], overwrite=arguments.overwrite)
    if Path(arguments.output).resolve() in {path.resolve() for path in inputs}:
        raise ValueError(f"--output {arguments.output} is also an input; choose another name")
    count = convert_files(inputs, Path(arguments.output), arguments.source, arguments.target, folder or "")
    print(f"{arguments.output}: {count:,} rows")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if rows cannot be converted, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
