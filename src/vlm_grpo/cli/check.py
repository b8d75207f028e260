"""`vlm-grpo check`: print all problems of a data set. Loads no model, and torch only with --model_name_or_path."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from vlm_grpo.cli.command_parser import CommandParser
from vlm_grpo.cli.migration import VALUES
from vlm_grpo.cli.templates import load_prompting
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import JsonObject

if TYPE_CHECKING:
    from vlm_grpo.data.parsing import ReaderConfig
    from vlm_grpo.records import Record


PRIVATE_HELP = "allow image URLs of this machine and of private networks"
EXAMPLE = "example: vlm-grpo check --data_file_paths a.jsonl:b.jsonl --image_folders x/:y/"


def main(argv: list[str] | None = None) -> int:
    """Print the table and return the exit status: 0 without problems, 1 with some, 2 for a usage error."""
    parser = CommandParser("vlm-grpo check", description=__doc__, epilog=EXAMPLE)
    add_data_flags(parser)
    parser.add_argument(
        "--mixture", metavar="FRACTIONS", help="fraction of each file, separated by ':', as in training"
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every image and download URLs, instead of reading headers"
    )
    parser.add_argument("--model_name_or_path", metavar="MODEL", help="also search for special tokens of this model")
    arguments = parser.parse_args(argv)
    source = data_source(parser, arguments)

    from vlm_grpo.data import DataError, check_source, problem_table
    from vlm_grpo.rewards.accuracy import describe_method

    accuracy: Counter[str] = Counter()
    earned: Counter[tuple[str, str]] = Counter()  # number of rows to which each reward of a task applies

    def note(record: Record) -> None:
        accuracy.update([describe_method(record)])
        earned.update(_task_rewards(record))

    try:
        config = reader_config(arguments)
        options = {"decode": arguments.decode, "mixture": arguments.mixture, **pairing(arguments)}
        problems = check_source(source, config=config, note=note, **options)
    except (DataError, KeyError, UsageError) as error:
        print(error.args[0], file=sys.stderr)
        return 1
    print(problem_table(problems) if problems else "no problems")
    if any(not problem.is_warning for problem in problems):
        return 1
    for text, count in accuracy.most_common():
        print(f"the reward accuracy of {count:,} rows is {text}")
    for line in _useless_rewards(earned):
        print(line)
    return 0


def _task_rewards(record: Record) -> dict[tuple[str, str], int]:
    """Return 1 for each default reward of a record's task that applies to it, else 0."""
    from vlm_grpo.rewards.applicability import is_applicable
    from vlm_grpo.tasks import TASKS

    return {(record.task, name): int(is_applicable(name, record)) for name in TASKS[record.task].rewards}


def _useless_rewards(earned: Counter[tuple[str, str]]) -> list[str]:
    """Return one line for each default reward of a task that applies to none of its rows; training would fail."""
    from vlm_grpo.rewards.applicability import requirement

    return [
        f"the reward {name} of the task {task} applies to none of its rows: it needs {requirement(name)}; "
        "remove it with --reward_funcs"
        for (task, name), count in earned.items()
        if not count
    ]


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the data flags of training."""
    add = parser.add_argument
    add("--data_file_paths", metavar="FILES", help="jsonl, json or csv files, separated by ':'")
    add("--image_folders", metavar="FOLDERS", help="image folder of each file, separated by ':', or one folder for all")
    add("--reward_method", metavar="METHODS", help="accuracy method of each file, separated by ':', or one for all")
    add("--dataset_name", metavar="NAME", help="org/name@split, a save_to_disk folder, or a parquet, json or csv file")
    add_hub_flag(parser)
    add("--task_type", default="default", type=task_name, metavar="TASK", help="task of records without one")
    add("--prompt_key", metavar="COLUMN", help="column with the question")
    add("--answer_key", metavar="COLUMN", help="column with the answer")
    add("--image_key", metavar="COLUMN", help="column with the image or images")
    add("--video_key", metavar="COLUMN", help="column with videos")
    add("--ignore_columns", nargs="+", metavar="COLUMN", help="columns to ignore")
    add("--allow_outside", action="store_true", help="allow image paths that leave their image folder")
    add("--allow_private_urls", action="store_true", help=PRIVATE_HELP)


def add_hub_flag(parser: argparse.ArgumentParser) -> None:
    """Add --use_huggingface_dataset, with an optional value, as in training."""
    parser.add_argument(
        "--use_huggingface_dataset",
        nargs="?",
        const=True,
        default=False,
        type=lambda text: text.lower() in ("true", "1", "yes"),
        metavar="true",
        help="read --dataset_name (implied by it; kept for old scripts)",
    )


def task_name(text: str) -> str:
    """Return the name of a task; names of other systems are translated."""
    return VALUES.get(("task_type", text), ("", None))[1] or text


def data_source(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Return the value of --data_file_paths or --dataset_name; a parser error unless exactly one is set."""
    if arguments.use_huggingface_dataset and not arguments.dataset_name:
        parser.error("--use_huggingface_dataset needs --dataset_name")
    if bool(arguments.data_file_paths) == bool(arguments.dataset_name):
        parser.error("set either --data_file_paths or --dataset_name")
    if arguments.dataset_name and arguments.image_folders and ":" in arguments.image_folders:
        parser.error("--dataset_name is a single data set and accepts only one folder in --image_folders")
    return arguments.data_file_paths or arguments.dataset_name


def pairing(arguments: argparse.Namespace) -> JsonObject:
    """Return the options with one entry per file."""
    return {"image_folders": arguments.image_folders, "reward_method": arguments.reward_method}


def reader_options(arguments: argparse.Namespace) -> JsonObject:
    """Return the options for reading rows, named as in `load_dataset`."""
    names = ("prompt_key", "answer_key", "image_key", "video_key", "allow_outside", "allow_private_urls")
    ignored = tuple(arguments.ignore_columns or ())
    return {"task": arguments.task_type, "ignore_columns": ignored, **{n: getattr(arguments, n) for n in names}}


def reader_config(arguments: argparse.Namespace) -> ReaderConfig:
    """Return the options for reading rows as a ReaderConfig."""
    from vlm_grpo.data import ReaderConfig

    options = reader_options(arguments)
    ignored = options.pop("ignore_columns")
    return ReaderConfig(**options, ignored=ignored, markup=_markup(arguments.model_name_or_path))


def _markup(model: str | None) -> tuple[str, ...] | None:
    """Return the special tokens of a model, read from its processor; None without a model."""
    return None if model is None else load_prompting(model, None).markup


if __name__ == "__main__":
    sys.exit(main())
