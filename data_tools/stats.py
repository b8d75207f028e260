"""What a data set looks like: lengths, image sizes, tasks, types of answers, duplicates, most common answers.

python data_tools/stats.py --data_file_paths train.jsonl --image_folders images --json stats.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # runs from a checkout as well

if TYPE_CHECKING:
    from vlm_grpo.data.statistics import Length, Statistics


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags; exits with status 2 when they contradict each other."""
    from vlm_grpo.cli.check import add_data_flags, data_source

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_flags(parser)
    add = parser.add_argument
    add("--model_name_or_path", metavar="MODEL", help="count its tokens, image tokens included, instead of words")
    add("--top", type=int, default=10, metavar="N", help="most common answers to show (default: 10)")
    add("--json", metavar="FILE", help="also write the numbers here")
    add("--overwrite", action="store_true", help="replace that file if it exists")
    arguments = parser.parse_args(argv)
    arguments.source = data_source(parser, arguments)
    if arguments.overwrite and not arguments.json:
        parser.error("--overwrite belongs to --json, without which it does nothing")
    if arguments.top < 1:
        parser.error("--top must be at least 1")
    return arguments


def show(arguments: argparse.Namespace) -> int:
    """Print the numbers. The status is 1 when rows could not be read; they are left out of the numbers."""
    import json

    from vlm_grpo.data.statistics import summary_lines
    from vlm_grpo.data.writing import refuse_existing, write_whole

    if arguments.json:
        refuse_existing([arguments.json], overwrite=arguments.overwrite)
    statistics, unread = collect(arguments)
    summary = {**statistics.summary(), "rows that cannot be read": len(unread)}
    print("\n".join(summary_lines(summary)))
    if unread:
        print(f"the first: {unread[0]}\ndata_tools/check.py lists them all", file=sys.stderr)
    if arguments.json:
        write_whole(arguments.json, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return int(bool(unread))


def collect(arguments: argparse.Namespace) -> tuple[Statistics, list[str]]:
    """The numbers of all rows that can be read, and what is wrong with each of the others.

    Raises:
        DataError: a file or folder is missing.
    """
    from vlm_grpo.cli.check import data_form, pairing
    from vlm_grpo.data.problems import DataError
    from vlm_grpo.data.rows import as_reading
    from vlm_grpo.data.sources import open_sources
    from vlm_grpo.data.statistics import Statistics

    opened = open_sources(arguments.source, **pairing(arguments), form=data_form(arguments))
    if opened.problems:
        raise DataError(opened.problems)
    statistics = Statistics(*lengths(arguments.model_name_or_path), common=arguments.top)
    unread: list[str] = []
    for source in opened.sources:
        for number, raw in enumerate(source.rows()):
            reading = as_reading(raw, source.where(number), number, source.form)
            if reading.record is None:
                unread.append(": ".join(next(fault for fault in reading.problems if not fault.is_warning).cells[:3]))
                continue
            try:
                statistics.add(reading.record)
            except ValueError as error:  # the tokens of a missing image cannot be counted
                unread.append(str(error))
    return statistics, unread


def lengths(model: str | None) -> tuple[Length, Length, str]:
    """How to measure prompts and answers, and in what: words, or the tokens of a model's processor or tokenizer."""
    from vlm_grpo.data.statistics import words
    from vlm_grpo.rewards.accuracy import gold

    if model is None:
        return (lambda record: words(record.question)), (lambda record: words(gold(record.answer))), "words"
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    tokenizer = getattr(processor, "tokenizer", processor)

    def answer_tokens(record: Any) -> int:
        return len(tokenizer(gold(record.answer), add_special_tokens=False).input_ids)

    return prompt_tokens(processor), answer_tokens, "tokens"


def prompt_tokens(processor: Any) -> Length:
    """The tokens of a rendered prompt with its images; of the question alone for a tokenizer, which knows no images."""
    if not hasattr(processor, "image_processor"):
        return lambda record: len(processor(record.question).input_ids)
    from vlm_grpo.data.rows import RowMaker
    from vlm_grpo.rollouts.encoder import PromptEncoder
    from vlm_grpo.rollouts.prompt_lengths import prompt_length

    encoder, make = PromptEncoder(processor, {}), RowMaker(()).row
    return lambda record: prompt_length(make(record), encoder)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 when rows cannot be read, 2 for a wrong command line."""
    from vlm_grpo.cli.tool import exit_status

    arguments = parse(argv)
    return exit_status(lambda: show(arguments))


if __name__ == "__main__":
    sys.exit(main())
