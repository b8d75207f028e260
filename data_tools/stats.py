"""Print statistics of a data set: lengths, image sizes, tasks, answer types, duplicates, most common answers.

python data_tools/stats.py --data_file_paths train.jsonl --image_folders images --json stats.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

if TYPE_CHECKING:
    from vlm_grpo.data.stats import Length, Statistics


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; exit with status 2 if they conflict."""
    from vlm_grpo.cli.check import add_data_flags, data_source

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_flags(parser)
    add = parser.add_argument
    add("--model_name_or_path", metavar="MODEL", help="count tokens of this model, including image tokens, not words")
    add("--top", type=int, default=10, metavar="N", help="number of most common answers to show (default: 10)")
    add("--json", metavar="FILE", help="also write the statistics to this file")
    add("--overwrite", action="store_true", help="replace this file if it exists")
    arguments = parser.parse_args(argv)
    arguments.source = data_source(parser, arguments)
    if arguments.overwrite and not arguments.json:
        parser.error("--overwrite has no effect without --json")
    if arguments.top < 1:
        parser.error("--top must be at least 1")
    return arguments


def show(arguments: argparse.Namespace) -> int:
    """Print the statistics of all readable rows; return 1 if rows cannot be read."""
    import json

    from vlm_grpo.data.stats import summary_lines
    from vlm_grpo.io import refuse_existing, write_whole

    if arguments.json:
        refuse_existing([arguments.json], overwrite=arguments.overwrite)
    statistics, unreadable = collect(arguments)
    summary = {**statistics.summary(), "rows that cannot be read": len(unreadable)}
    print("\n".join(summary_lines(summary)))
    if unreadable:
        print(f"first problem: {unreadable[0]}\ndata_tools/check.py lists all of them", file=sys.stderr)
    if arguments.json:
        write_whole(arguments.json, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return int(bool(unreadable))


def collect(arguments: argparse.Namespace) -> tuple[Statistics, list[str]]:
    """Return the statistics of all readable rows, and a problem for each of the others.

    Raises:
        DataError: a file or folder is missing.
    """
    from vlm_grpo.cli.check import pairing, reader_config
    from vlm_grpo.data.errors import DataError
    from vlm_grpo.data.parsing import parse_raw_row
    from vlm_grpo.data.readers import open_sources
    from vlm_grpo.data.stats import Statistics

    result = open_sources(arguments.source, **pairing(arguments), config=reader_config(arguments))
    if result.problems:
        raise DataError(result.problems)
    statistics = Statistics(*lengths(arguments.model_name_or_path), common=arguments.top)
    unreadable: list[str] = []
    for source in result.sources:
        for number, raw in enumerate(source.rows()):
            parsed = parse_raw_row(raw, source.where(number), number, source.config)
            if parsed.record is None:
                unreadable.append(
                    ": ".join(next(problem for problem in parsed.problems if not problem.is_warning).cells[:3])
                )
                continue
            try:
                statistics.add(parsed.record)
            except ValueError as error:  # the tokens of a missing image cannot be counted
                unreadable.append(str(error))
    return statistics, unreadable


def lengths(model: str | None) -> tuple[Length, Length, str]:
    """Return functions that measure prompts and answers, and their unit: words, or tokens of a model."""
    from vlm_grpo.data.stats import count_words
    from vlm_grpo.rewards.accuracy import ground_truth_text

    if model is None:
        return (
            (lambda record: count_words(record.question)),
            (lambda record: count_words(ground_truth_text(record.answer))),
            "words",
        )
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    tokenizer = getattr(processor, "tokenizer", processor)

    def answer_tokens(record: Any) -> int:
        return len(tokenizer(ground_truth_text(record.answer), add_special_tokens=False).input_ids)

    return prompt_tokens(processor), answer_tokens, "tokens"


def prompt_tokens(processor: Any) -> Length:
    """Return a function that counts the tokens of a rendered prompt with images (with a tokenizer: the question's)."""
    if not hasattr(processor, "image_processor"):
        return lambda record: len(processor(record.question).input_ids)
    from vlm_grpo.data.dataset import RowTransform
    from vlm_grpo.rollouts.encoder import PromptEncoder
    from vlm_grpo.rollouts.prompt_lengths import prompt_length

    encoder, make = PromptEncoder(processor, {}), RowTransform(()).row
    return lambda record: prompt_length(make(record), encoder)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if rows cannot be read, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: show(arguments))


if __name__ == "__main__":
    sys.exit(main())
